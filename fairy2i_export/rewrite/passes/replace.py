"""Pass "replace": a Fairy2iMatMul node in the place of every selected product, as its pattern makes it (patterns/)."""

from __future__ import annotations

from collections.abc import Sequence

from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.patterns import pattern_of
from fairy2i_export.rewrite.replacement import Replacement, Replacements


def replace_linears(linears: Sequence[Linear], shared: Replacements) -> int:
    """Replace all layers that have a recipe; returns how many."""
    alive = [linear for linear in linears if linear.alive]
    for linear in alive:
        pattern = pattern_of(linear.node)
        if pattern is None:
            raise AssertionError(f"{linear.name}: of no pattern")
        pattern.replace(Replacement(shared, linear))
    shared.removal.finish()
    return len(alive)
