"""``MatMul`` with a constant matrix on either side.

MatMul(x, W)            Fairy2iMatMul(x)                                   W constant [K, N]
MatMul(W, x)            Transpose -> Fairy2iMatMul -> Transpose            W constant [N, K]
MatMul(x, W) + b        Fairy2iMatMul(x, bias = b)                         b constant, one value per output
"""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.patterns.base import Match, Pattern, malformed, matrix_shape, operands, why_dynamic
from fairy2i_export.rewrite.replacement import Replacement
from fairy2i_export.rewrite.values.constants import Constants
from fairy2i_export.rewrite.values.ranks import rank_of


def _match(node: ir.Node, constants: Constants) -> Match | None:
    if reason := malformed(node, 2, {}):
        return Match(None, reason=reason)
    left, right = operands(node)
    if left in constants and right in constants:
        return None  # part of computing a constant
    if right in constants:
        return Match(right)
    if left in constants:
        return Match(left, transposed=False, on_left=True)
    return Match(None, reason=why_dynamic(right, constants))


def _shape(linear: Linear, stored: tuple[int, int]) -> tuple[int, int] | str:
    if linear.on_left and rank_of(linear.node.inputs[1]) is None:
        return "the matrix is the left operand, and the number of dimensions of the right one is unknown"
    return matrix_shape(linear, stored)


def _replace(new: Replacement) -> None:
    if new.linear.on_left:
        new.put_in([new.node], new.node, _between_transposes(new, new.node.inputs[1]))
        return
    following = new.following_bias()
    if following is None:
        new.put_in([new.node], new.node, new.operator(new.node.inputs[0]))
    else:
        add, bias = following
        new.put_in([new.node, add], add, new.operator(new.node.inputs[0], bias=new.fuse(bias, add.name or "Add")))


def _between_transposes(new: Replacement, x: ir.Value | None) -> ir.Value:
    """W x = (x^T W^T)^T over the last two dimensions; a vector x needs no transposition."""
    rank = rank_of(x)
    if rank is None:
        raise AssertionError(f"{new.linear.name}: the rank of its input was known when it was resolved")
    if rank < 2:
        return new.operator(x)
    swap = {"perm": [*range(rank - 2), rank - 1, rank - 2]}
    y = new.operator(new.op("Transpose", "transposed_input", [x], swap))
    return new.op("Transpose", "transposed_output", [y], swap)


MATMUL = Pattern("MatMul", _match, _shape, _replace)
