"""How many dimensions a value has, where the exporter did not write it down."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.onnx_graph.operator import OP_NAMES

_AS_FIRST_INPUT = {
    "Cast", "Identity", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Elu", "Selu", "Softmax", "Softplus", "Erf", "Neg",
    "Transpose", "LayerNormalization", "Dropout", "Clip", *OP_NAMES,
}  # fmt: skip
_BROADCAST = {"Add", "Sub", "Mul", "Div"}
_DEPTH = 50  # nodes looked back: the answer is near or not worth the search


def rank_of(value: ir.Value | None, depth: int = _DEPTH) -> int | None:
    """Number of dimensions of a value, None if it cannot be told."""
    if value is None or depth == 0:
        return None
    shape = value.shape
    if shape is None and value.const_value is not None:
        shape = value.const_value.shape  # type: ignore[assignment]
    if shape is not None:
        return shape.rank()
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Gemm":
        return 2
    if node.op_type in _AS_FIRST_INPUT and node.inputs:
        return rank_of(node.inputs[0], depth - 1)
    if node.op_type in _BROADCAST or node.op_type == "MatMul":
        ranks = [rank_of(x, depth - 1) for x in node.inputs]
        known = [rank for rank in ranks if rank is not None]
        if not known or len(known) < len(ranks) or (node.op_type == "MatMul" and min(known) < 2):
            return None
        return max(known)
    return None
