"""Pass "define": what the model needs so that the operator means something: function body, operator sets, metadata."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

import fairy2i_export
from fairy2i_export.onnx_graph.function import DOMAIN, INPUTS, OP_NAME, OP_VERSION, matmul_function
from fairy2i_export.rewrite.passes.find import operator_nodes

_FUNCTION_IR_VERSION = 8  # the first with model-local functions
_KEY = (DOMAIN, OP_NAME, "")


def define_operator(model: ir.Model, opset: int, *, rewritten: bool) -> int:
    """Put in the function body and complete the nodes' inputs.

    Args:
        model: the model.
        opset: of the standard operators.
        rewritten: whether nodes were added; a body that is there already is then replaced by ours.

    Returns:
        How many things were added: the function, and nodes that named fewer than six inputs.
    """
    nodes = operator_nodes(model)
    changes = 0
    for node in nodes:
        if len(node.inputs) < len(INPUTS):  # exporters leave out trailing optional inputs; the reference evaluator wants all
            node.resize_inputs(len(INPUTS))
            changes += 1
    if nodes and (rewritten or _KEY not in model.functions):
        model.functions[_KEY] = matmul_function(opset)
        model.graph.opset_imports[DOMAIN] = OP_VERSION
        model.ir_version = max(model.ir_version, _FUNCTION_IR_VERSION)
        changes += 1
    return changes


def describe(model: ir.Model, properties: Mapping[str, str]) -> None:
    """Metadata of a model that was changed; everything else that is there stays."""
    model.metadata_props.update(properties)
    model.metadata_props["fairy2i.tool_version"] = fairy2i_export.__version__
