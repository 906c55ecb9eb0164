"""Pass "define": what the model needs so that the operator means something: function body and operator sets."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.onnx_graph.function import define
from fairy2i_export.onnx_graph.operator import (
    DOMAIN,
    FUNCTION_IR_VERSION,
    OP_NAME,
    OP_VERSION,
    complete_inputs,
)
from fairy2i_export.rewrite.passes.find import operator_nodes


def define_operator(model: ir.Model, opset: int, *, rewritten: bool) -> int:
    """Put in the function body and complete the nodes' inputs.

    Args:
        model: the model.
        opset: of the standard operators.
        rewritten: whether nodes were added; a body that is there already is then replaced by ours.

    Returns:
        How many things were added: the functions, counted once, and nodes that named fewer inputs than there are.
    """
    nodes = operator_nodes(model)
    changes = sum(complete_inputs(node) for node in nodes)
    needed = {(DOMAIN, name, "") for name in (OP_NAME, *(node.op_type for node in nodes))}
    if nodes and (rewritten or not needed <= set(model.functions)):
        define(model, opset)
        model.graph.opset_imports[DOMAIN] = OP_VERSION
        model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
        changes += 1
    return changes
