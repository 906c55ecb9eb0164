"""Scales that the kernel "dot" takes as they are: whole multiples of one number, few enough in all for 8 bits.

"dot" rounds the scales of a layer to such a grid (docs/architecture.md, "Numerics contract"). Rounded afterwards, each is off in
the same direction for all weights, and what the codes of one column made up for in others no longer fits. Rounded while codes are
still chosen, they cost next to nothing: codes and multipliers follow.

On a grid it happens that two codes of U or of W stand for the same value (21 - 32 + 11 = -21 + 32 - 11). That is a value less, and
training that starts from there could not tell which of them a weight had.
"""

from __future__ import annotations

import numpy as np

from fairy2i_export.codes.layout import GRID_CHOICES, GRID_STEPS
from fairy2i_export.codes.native import F32, F64
from fairy2i_export.codes.profiles import CODE_RE
from fairy2i_export.codes.quantized import sums_of


def on_grid(scales: F32, normal: F64) -> F32:
    """The scales of such a grid that cost least; if there are any, of one in which all codes stand for different values.

    Args:
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        normal: float64 [4 stages, 4 stages], positive definite: scales that are off by d cost ``d normal d``.

    Returns:
        float32 like ``scales``; those given if one of them is too small for every grid, or all are zero.
    """
    wanted = scales.reshape(-1).astype(np.float64)
    most = GRID_STEPS[len(scales) - 1]
    largest = np.abs(wanted).reshape(-1, 2).sum(axis=0).max()
    if not largest > 0:
        return scales
    tried: list[tuple[float, int, F64, F64]] = []
    for count in range(most, most - GRID_CHOICES, -1):
        steps = np.rint(wanted * (count / largest))
        total = np.abs(steps).reshape(-1, 2).sum(axis=0).max()
        if not steps.all() or not most - GRID_CHOICES < total <= most:
            continue
        found = steps * ((steps @ normal @ wanted) / (steps @ normal @ steps))
        tried.append((float((found - wanted) @ normal @ (found - wanted)), len(tried), steps, found))
    if not tried:
        return scales
    tried.sort()  # by cost, of those that cost the same the first
    *_, best = next((grid for grid in tried if not _alike(grid[2].reshape(scales.shape))), tried[0])
    return best.astype(np.float32).reshape(scales.shape)


def _alike(steps: F64) -> bool:
    """Whether two codes of U, or two of W, stand for the same value.

    Args:
        steps: whole numbers [stages, 2 (U, W), 2 (re, im)].
    """
    codes = np.indices((len(CODE_RE),) * len(steps), np.uint8).reshape(len(steps), 1, -1).repeat(2, axis=1)
    return any(len(np.unique(re + 1j * im)) < len(re) for re, im in sums_of(codes, steps.astype(np.float32)))
