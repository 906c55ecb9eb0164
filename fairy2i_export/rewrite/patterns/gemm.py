"""``Gemm`` with a constant second operand.

Gemm(x, W, C)           Fairy2iMatMul(x, bias = beta C)            alpha goes into the scales
Gemm(x, W) + b          Fairy2iMatMul(x, bias = b)                 b constant, one value per output
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fairy2i_export.rewrite.patterns.base import Match, Pattern, malformed, matrix_shape, operands, why_dynamic
from fairy2i_export.rewrite.replacement import Replacement
from fairy2i_export.rewrite.values.constants import Constants

_ATTRIBUTES = {
    "transA": ir.AttributeType.INT,
    "transB": ir.AttributeType.INT,
    "alpha": ir.AttributeType.FLOAT,
    "beta": ir.AttributeType.FLOAT,
}


def _match(node: ir.Node, constants: Constants) -> Match | None:
    if reason := malformed(node, 3, _ATTRIBUTES):
        return Match(None, reason=reason)
    left, right = operands(node)
    if left in constants and right in constants:
        return None
    if right in constants:
        return Match(right, transposed=not _number(node, "transB", 0))
    if left in constants:
        return Match(left, reason="the constant is the left operand of a Gemm")
    return Match(None, reason=why_dynamic(right, constants))


def _replace(new: Replacement) -> None:
    node = new.node
    x, old, last = node.inputs[0], [node], node
    factor, beta = _number(node, "alpha", 1.0), _number(node, "beta", 1.0)
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if _number(node, "transA", 0):
        x = new.op("Transpose", "transposed_input", [x], {"perm": [1, 0]})
    bias = None if addend is None else new.bias_of(addend, 2)
    if bias is not None:
        bias = new.fuse((bias * np.float32(beta)).astype(np.float32), "C")
        addend = None
    elif addend is None and (following := new.following_bias()) is not None:
        last, bias = following
        old.append(last)
        bias = new.fuse(bias, last.name or "Add")
    y = new.operator(x, factor=factor, bias=bias)
    new.put_in(old, last, y if addend is None else _add(new, y, addend, beta))


def _add(new: Replacement, y: ir.Value, addend: ir.Value, beta: float) -> ir.Value:
    """The third operand where it is no constant row."""
    if beta != 1.0:
        constant = new.constant("beta", np.array(beta, new.storage))
        if new.dtype == ir.DataType.BFLOAT16:
            constant = new.op("CastLike", "beta_cast", [constant, addend], {})
        addend = new.op("Mul", "beta_addend", [addend, constant], {})
    return new.op("Add", "sum", [y, addend], {})


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


GEMM = Pattern("Gemm", _match, matrix_shape, _replace)
