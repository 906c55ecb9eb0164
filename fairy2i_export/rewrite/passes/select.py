"""Pass "select": --include and --exclude."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from fairy2i_export.errors import OptionError
from fairy2i_export.rewrite.linears import Linear


def select_linears(
    linears: Sequence[Linear], include: Sequence[str], exclude: Sequence[str], rewritten_before: Sequence[str] = ()
) -> int:
    """Leave what the globs leave out alone; returns how many layers are still to be rewritten.

    Args:
        linears: the layers.
        include: globs; only matching layers are rewritten.
        exclude: globs; matching layers are left.
        rewritten_before: names of operator nodes that are there already: a glob may match those instead, so that the same
            command can be given twice.

    Raises:
        OptionError: a glob that matches no linear layer at all.
    """
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            names = [*rewritten_before, *(name for linear in linears for name in linear.aliases)]
            if not any(fnmatchcase(name, pattern) for name in names):
                raise OptionError(f"{option} {pattern!r} matches no linear layer; {_examples(linears)}")
    for linear in linears:
        if include and not _matches(linear, include):
            linear.reason = linear.reason or "not in --include"
        elif _matches(linear, exclude):
            linear.reason = linear.reason or "--exclude"
    return sum(linear.alive for linear in linears)


def _matches(linear: Linear, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in linear.aliases for pattern in patterns)


def _examples(linears: Sequence[Linear]) -> str:
    names = [linear.name for linear in linears if linear.alive] or [linear.name for linear in linears]
    if not names:
        return "there is none in this model"
    return f"they are called like {', '.join(names[:3])}"
