"""The published quantizer's scales: stage by stage the mean magnitude of what earlier stages left, per axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from fairy2i_export.native import F32, F64, LatentMatrix, each, row_blocks
from fairy2i_export.profiles import Rounding, floored


def greedy_scales(matrix: LatentMatrix, rnd: Rounding, pool: Executor | None, check: Callable[[F64], None]) -> F32:
    """Scales float32 [stages, 2 (U, W), 2 (re, im)], one pass over the matrix for each stage.

    Args:
        matrix: the latent weights.
        rnd: rounding of the profile.
        pool: threads to share the rows among.
        check: gets the sums of the first stage, which are not finite where a weight is not.
    """
    blocks = row_blocks(matrix.n, matrix.m, 1)
    scales = np.empty((0, 2, 2), np.float32)
    for stage in range(matrix.stages):
        parts = each(lambda part: matrix.sums(part, scales), blocks, pool)  # noqa: B023 - called before scales changes
        sums = np.concatenate([part[0] for part in parts])
        counts = sum(part[1].sum(axis=0) for part in parts)
        if stage == 0:
            check(sums)
        # the mean of an axis, added exactly; an axis without entries gets the floor
        means = [[math.fsum(sums[:, u_w, axis]) / max(1, counts[u_w, axis]) for axis in range(2)] for u_w in range(2)]
        scales = np.concatenate([scales, floored(np.array([means], np.float32), rnd)])
    return scales
