"""What a pattern is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.replacement import Replacement
from fairy2i_export.rewrite.values.constants import STANDARD, Constants

DYNAMIC = "the matrix is computed at run time"


@dataclass(frozen=True)
class Match:
    """A node that multiplies by a matrix.

    Attributes:
        value: the operand that is a constant; None if none is.
        transposed: whether it is stored [K, N] instead of [N, K].
        on_left: whether it is the first operand.
        reason: why the node is left alone; empty if it is not.
    """

    value: ir.Value | None
    transposed: bool = True
    on_left: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Pattern:
    """One operator that can become a Fairy2iMatMul node.

    Attributes:
        operator: its name.
        match: what a node of it multiplies by; None where the node only computes a constant.
        shape: (N, K) of the matrix from its stored shape, or why the operator cannot hold it.
        replace: makes the new nodes of a layer and puts them in the place of the old ones.
        domains: of the operator.
    """

    operator: str
    match: Callable[[ir.Node, Constants], Match | None]
    shape: Callable[[Linear, tuple[int, int]], tuple[int, int] | str]
    replace: Callable[[Replacement], None]
    domains: tuple[str, ...] = STANDARD


def matrix_shape(linear: Linear, stored: tuple[int, int]) -> tuple[int, int]:
    """(N, K) of a matrix from its stored shape."""
    return stored[::-1] if linear.transposed else stored


def operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The two factors; a damaged model may have fewer."""
    left, right = (*node.inputs, None, None)[:2]
    return left, right
