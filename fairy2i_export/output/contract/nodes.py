"""The operator nodes of a model, read from its file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from fairy2i_export.errors import FormatError
from fairy2i_export.onnx_graph.operator import DOMAIN, OP_NAME, Node, is_operator, read_node


def read_nodes(model_file: Path) -> list[Node]:
    """All operator nodes of a model, in graph order; their weights stay mapped.

    Raises:
        FormatError: if there is none, or operands are missing or contradict the format.
    """
    model = ir.load(model_file)
    nodes = [read_node(node) for node in model.graph if is_operator(node)]
    if not nodes:
        raise FormatError(
            f"{model_file}: expected {OP_NAME} nodes of domain {DOMAIN}, found none; fairy2i-export did not write it, or for "
            "another backend (--backend matmulnbits, dense)"
        )
    return nodes
