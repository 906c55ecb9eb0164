"""Find the codes of a dequantized matrix whose output rows were multiplied by one factor each.

With A = diag(r) A' the two real rows i and n + i of one complex row hold r_i (w + u) and r_(n+i) (u - w) for the same entries
u of U and w of W (their imaginary parts likewise). Wherever the part of u or of w is zero, which it is for a good share of the
entries because a code is either real or imaginary, the quotient of the two is r_i / r_(n+i): the quotient that occurs most
often. That leaves one factor per complex row. It is found by comparing the magnitudes that the row takes with those of a
reference row. What remains is an ordinary sum of stages.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fairy2i_export.codes.native import F32, F64
from fairy2i_export.codes.quantized import QuantizedLinear, split_widely_linear
from fairy2i_export.codes.recover.stage_sums import StageSums, explain

_SAME = 3e-6  # relative difference of two float32 quotients that mean the same
_SHARE = 0.05  # of a row's quotients have to agree
_FEWEST_COLUMNS = 16  # complex ones: fewer tell nothing
_MOST_LEVELS = 41  # of one part: (3^4 + 1) / 2


def recover_any(a: F32) -> QuantizedLinear | None:
    """Codes, scales and, where they are needed, row multipliers of a dequantized matrix; None if it is none.

    Args:
        a: real matrix [2n, 2m], finite. Row multipliers are found in float32 matrices only.

    Returns:
        As :func:`~fairy2i_export.codes.recover.stage_sums.recover`, possibly with a row multiplier. The factors are relative to
        the first row: a common factor of all rows is part of the scales.
    """
    found = explain_any(a)
    return None if found is None else found[0]


def explain_any(a: F32) -> tuple[QuantizedLinear, StageSums] | None:
    """As :func:`recover_any`, and what it takes to read the codes off again."""
    return explain(a) or _explain_rows(a)


def _explain_rows(a: F32) -> tuple[QuantizedLinear, StageSums] | None:
    if a.ndim != 2 or a.shape[0] % 2 or a.shape[1] % 2 or a.shape[1] < 2 * _FEWEST_COLUMNS or 0 in a.shape:
        return None
    n = a.shape[0] // 2
    exact = a.astype(np.float64)
    rows = np.ones(2 * n)
    for i in range(n):
        quotient = _lower_factor(exact[i], exact[n + i])
        if quotient is None:
            return None  # latent weights end here, at the first row
        rows[n + i] = quotient
    even = exact / rows[:, None]
    parts = [np.abs(part) for part in split_widely_linear(even)]
    reference: list[F64] | None = None
    for i in range(n):
        levels = [_row_levels(part[i]) for part in parts]
        if max(each.size for each in levels) > _MOST_LEVELS:
            return None
        if reference is None:
            reference = levels
        factor = _common_factor(levels, reference)
        if factor is None:
            return None
        rows[[i, n + i]] *= factor
    plain = explain((exact / rows[:, None]).astype(np.float32))
    if plain is None:
        return None
    found = replace(plain[0], row_multiplier=rows.astype(np.float32))
    error = np.abs(found.dequantize("none") - a).max(axis=1)
    if not (error <= 4 * _SAME * np.abs(a).max(axis=1)).all():
        return None
    return found, replace(plain[1], rows=rows)


def _lower_factor(upper: F64, lower: F64) -> float | None:
    """r_(n+i) / r_i, from the quotients of entries that belong together."""
    m = upper.size // 2
    above = np.abs(upper)
    below = np.abs(np.concatenate([lower[m:], lower[:m]]))
    used = (above > 0) & (below > 0)
    if used.sum() < _FEWEST_COLUMNS:
        return None
    logs = np.sort(np.log(below[used] / above[used]))
    count = np.searchsorted(logs, logs + _SAME) - np.arange(logs.size)
    start = int(count.argmax())
    if count[start] < max(4, _SHARE * logs.size):
        return None
    return float(np.exp(np.median(logs[start : start + count[start]])))


def _row_levels(magnitudes: F64) -> F64:
    """The distinct non-zero magnitudes of one part of one row, ascending."""
    ordered = np.sort(magnitudes)
    ordered = ordered[ordered > _SAME * ordered[-1]]
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf) > 4 * _SAME * ordered[-1:].max(initial=0))
    return np.add.reduceat(ordered, starts) / np.diff(np.append(starts, ordered.size)) if starts.size else ordered


def _common_factor(levels: list[F64], reference: list[F64]) -> float | None:
    """The factor by which most of a row's magnitudes are those of the reference row."""
    pairs = [np.log(own[:, None] / other[None, :]).reshape(-1) for own, other in zip(levels, reference, strict=True)]
    logs = np.sort(np.concatenate(pairs))
    if logs.size == 0:
        return None
    count = np.searchsorted(logs, logs + 4 * _SAME) - np.arange(logs.size)
    start = int(count.argmax())
    if 2 * count[start] < max(each.size for each in levels):
        return None
    return float(np.exp(np.median(logs[start : start + count[start]])))
