"""The published quantizer's scales: stage by stage the mean magnitude of what earlier stages left, per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from fairy2i_export.codes.native import F32, F64, I64, LatentMatrix, Rows, each, row_blocks
from fairy2i_export.codes.profiles import Rounding, floored
from fairy2i_export.codes.strategies.base import Check, Strategy


def greedy_scales(
    matrix: LatentMatrix,
    rnd: Rounding,
    pool: Executor | None,
    check: Check,
    blocks: Sequence[Rows] | None = None,
) -> F32:
    """Scales float32 [stages, 2 (U, W), 2 (re, im)], one pass over the matrix for each stage.

    Args:
        matrix: the latent weights.
        rnd: rounding of the profile.
        pool: threads to share the rows among.
        check: gets the sums of the first stage, which are not finite where a weight is not.
        blocks: how to share them; makes no difference to the result.
    """
    blocks = row_blocks(matrix.n, matrix.m, 1) if blocks is None else blocks
    scales = np.empty((0, 2, 2), np.float32)
    for stage in range(matrix.stages):
        parts = each(lambda part: matrix.sums(part, scales), blocks, pool)  # noqa: B023 - called before scales changes
        sums = np.concatenate([part[0] for part in parts])
        counts = sum(part[1].sum(axis=0) for part in parts)
        if stage == 0:
            check(sums)
        scales = np.concatenate([scales, floored(exact_means(sums, counts)[None], rnd)])
    return scales


def exact_means(sums: F64, counts: I64) -> F32:
    """Means of sums [rows, ...] that are not negative, as if added exactly; float32 [...]. The mean of nothing is 0.

    Almost always plain additions settle it: when the sum that they give, plus or minus all they can be wrong by, has one mean
    in float32. Otherwise the sums are added again, exactly.
    """
    total, count = sums.sum(axis=0), np.maximum(counts, 1)
    with np.errstate(invalid="ignore"):  # an infinite sum is not settled here
        reach = total * (len(sums) + 4) * 2.0**-52
        low: F32 = ((total - reach) / count).astype(np.float32)
        high: F32 = ((total + reach) / count).astype(np.float32)
    if np.array_equal(low, high):
        return low
    exact = [math.fsum(column) for column in sums.reshape(len(sums), -1).T.tolist()]
    means: F32 = (np.reshape(exact, total.shape) / count).astype(np.float32)
    return means


GREEDY = Strategy(
    "greedy",
    "the published one, stage after stage",
    greedy_scales,
    jointly=False,
    stagewise=True,
    searches=False,
    in_torch="wholly",
)
