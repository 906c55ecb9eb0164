"""ONNX patterns that become operators: one file each with match, shape and replace, and a row below.

``LEFT`` are operators that multiply by a matrix too and that nobody rewrites, with the reason; they are reported.
"""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.rewrite.patterns.base import Match, Pattern
from fairy2i_export.rewrite.patterns.gemm import GEMM
from fairy2i_export.rewrite.patterns.left import reason_to_leave
from fairy2i_export.rewrite.patterns.matmul import MATMUL
from fairy2i_export.rewrite.values.constants import Constants

PATTERNS: dict[str, Pattern] = {pattern.operator: pattern for pattern in (MATMUL, GEMM)}

__all__ = ["PATTERNS", "Match", "Pattern", "match", "pattern_of"]


def pattern_of(node: ir.Node) -> Pattern | None:
    """The pattern that a node may be."""
    pattern = PATTERNS.get(node.op_type)
    return pattern if pattern is not None and node.domain in pattern.domains else None


def match(node: ir.Node, constants: Constants) -> Match | None:
    """What a node multiplies by, or why it is left; None if it multiplies by nothing that concerns us."""
    pattern = pattern_of(node)
    if pattern is not None:
        return pattern.match(node, constants)
    reason = reason_to_leave(node, constants)
    return Match(None, reason=reason) if reason else None
