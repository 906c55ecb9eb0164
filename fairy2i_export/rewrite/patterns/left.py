"""Operators that multiply by a matrix and are never rewritten, and why."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.rewrite.values.constants import Constants

_QUANTIZED = (
    "MatMulNBits", "MatMulBnb4", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul",
    "QGemm", "QOrderedMatMul", "MatMulFpQ4",
)  # fmt: skip
_FUSED = ("FusedMatMul", "FusedGemm", "GemmFloat8", "GemmFastGelu", "FusedMatMulActivation")


def reason_to_leave(node: ir.Node, constants: Constants) -> str:
    """Why a node stays as it is; empty if it is no product with a matrix."""
    if node.op_type in _QUANTIZED:
        return f"quantized another way already ({node.op_type})"
    if node.op_type in _FUSED:
        return f"fused operator {node.op_type}: rewrite the model before it is optimized"
    if node.op_type == "Einsum" and any(value in constants for value in node.inputs):
        return "Einsum with a constant: export it as a MatMul"
    return ""
