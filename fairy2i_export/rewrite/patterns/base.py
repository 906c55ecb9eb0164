"""What a pattern is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.replacement import Replacement
from fairy2i_export.rewrite.values.constants import STANDARD, Constants

DYNAMIC = "the matrix is computed at run time"
OVERRIDABLE = "the weight is also a graph input, which callers may replace; take it out of graph.input"


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


def malformed(node: ir.Node, inputs: int, attributes: Mapping[str, ir.AttributeType]) -> str:
    """Why a node cannot be what its name says; empty if it can.

    Args:
        node: of two to ``inputs`` inputs and one output.
        inputs: how many it has at most.
        attributes: those that it may have, with their types.
    """
    if not 2 <= len(node.inputs) <= inputs or None in node.inputs[:2]:
        return f"malformed: {len(node.inputs)} inputs"
    if len(node.outputs) != 1 or not node.outputs[0].name:
        return f"malformed: {sum(bool(output.name) for output in node.outputs)} outputs"
    for attribute in node.attributes.values():
        if attribute.is_ref() or attributes.get(attribute.name) != attribute.type:
            return f"malformed: attribute {attribute.name} of type {attribute.type.name}"
    return ""


def why_dynamic(value: ir.Value | None, constants: Constants) -> str:
    """Why a matrix is no constant."""
    return OVERRIDABLE if constants.overridable(value) else DYNAMIC


def operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The two factors; a damaged model may have fewer."""
    left, right = (*node.inputs, None, None)[:2]
    return left, right
