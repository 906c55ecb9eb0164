"""Scales and multipliers of a matrix: where they start, and least squares in the metric of the inputs once codes are chosen.

Everything is transposed, [2m, 2n], and in the metric's order of columns, as in feedback.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32, Points
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE
from fairy2i_export.codes.quantized import sums_of
from fairy2i_export.codes.strategies.joint import STARTS
from fairy2i_export.compile.calibrate.matrix.feedback import Candidate, round_pair
from fairy2i_export.compile.calibrate.matrix.grid import on_grid
from fairy2i_export.compile.calibrate.matrix.metric import Metric

# signs of Re and Im of U and of W in the upper half of a matrix (column j for Re, j + m for Im), and in the lower (the other)
_SIGNS = (((1, 1), (-1, 1)), ((1, -1), (1, 1)))
# Scales to start with, [stage][re, im], for entries whose parts have the standard deviation 1: the joint quantizer's first, which
# after feedback, annealing and fits leave less error than its second at 3 and 4 stages. With 4 stages others, of which annealing
# leaves 1.6 % more error, and whose largest is 1.24 instead of 1.5 (benchmarks/quality/joint_starts.py --stages 4 --largest 1.25):
# lut rounds in a unit that follows the largest, and is off by 1.12 % instead of 1.30.
SCALES = {stages: starts[0] for stages, starts in STARTS.items()} | {
    4: ((1.24, 0.83), (1.13, 1.20), (0.37, 1.13), (0.60, 0.55))
}
_SHRINKING = (0.75, 0.85, 0.92, 1.0, 1.1, 1.25)  # of a row's multiplier: clip outliers, or be finer in the middle
_SAMPLED_PAIRS = 256  # of columns that the search looks at
_SAMPLED_ROWS = 64  # complex rows that scales are fitted to


def start(target: Any, metric: Metric, stages: int) -> Candidate:
    """A candidate without codes: usual scales, and the row multipliers with which plain rounding does best on a sample of columns.

    A row's multiplier is its root mean square times one of a few factors, the same for both rows of a complex one. Errors of a
    column count by its weight in the metric.

    Args:
        target: torch float32 [2m, 2n].
        metric: of the inputs.
        stages: 1 to 4.
    """
    values: F32 = target.numpy()
    count, n = len(values), values.shape[1] // 2
    rows = np.sqrt(np.mean(values.astype(np.float64) ** 2, axis=0)).astype(np.float32)
    rows[rows == 0] = 1
    step = -(-count // 2 // _SAMPLED_PAIRS)
    sample = values.reshape(-1, 2, 2 * n)[::step] / rows
    weight = metric.diagonal.reshape(-1, 2, 1)[::step]
    codes, found = np.empty((stages, 2, len(sample), n), np.uint8), np.empty_like(sample)
    # parts of U and W are half the sum of two entries of unit variance
    scales = np.repeat(np.array(SCALES[stages], np.float32)[:, None] * np.float32(0.5**0.5), 2, axis=1)
    points = Points(scales[:, 0]), Points(scales[:, 1])
    losses = np.empty((len(_SHRINKING), n))
    for index, factor in enumerate(_SHRINKING):
        round_pair(sample / np.float32(factor), points, codes, found)
        found *= np.float32(factor)
        loss = (weight * (sample - found) ** 2).sum(axis=(0, 1), dtype=np.float64) * rows.astype(np.float64) ** 2
        losses[index] = loss[:n] + loss[n:]
    factors = np.array(_SHRINKING, np.float32)[losses.argmin(axis=0)]
    no_codes = np.zeros((stages, 2, count // 2, n), np.uint8)
    return Candidate(scales, rows * np.tile(factors, 2), np.ones(count, np.float32), no_codes, np.zeros_like(values))


def refit_rows(wanted: Any, metric: Metric, candidate: Candidate) -> Any:
    """Multiply every row by the factor that brings its outputs nearest to the target's.

    Args:
        wanted: torch float32 [2m, 2n], the metric times the target.
        metric: of the inputs.
        candidate: with codes; its rows are changed.

    Returns:
        The metric times what the candidate stands for then.
    """
    import torch

    dense = torch.from_numpy(candidate.dense)
    found = metric.hessian @ dense
    return multiply_rows(candidate, (wanted * dense).sum(0) / (found * dense).sum(0).clamp(min=1e-30), found)


def multiply_rows(candidate: Candidate, factor: Any, found: Any) -> Any:
    """Multiply every row by its factor, torch float32 [2n], at most doubled or halved.

    Args:
        candidate: its rows and dense values are changed.
        factor: of the rows.
        found: torch float32 [2m, 2n], the metric times what the candidate stands for; changed and returned.
    """
    factor = factor.clamp(0.5, 2.0)
    candidate.rows = candidate.rows * factor.numpy()
    candidate.dense *= factor.numpy()
    found *= factor
    return found


def refit_scales(target: Any, metric: Metric, candidate: Candidate, is_grid: bool) -> None:
    """The scales of all stages, of U and W and of both axes, that bring the outputs of these codes nearest to the target's.

    Args:
        target: torch float32 [2m, 2n].
        metric: of the inputs.
        candidate: gets them.
        is_grid: they are to be those of a grid (grid.py).
    """
    import torch

    stages, _, m, n = candidate.codes.shape
    sample = np.arange(0, n, -(-n // _SAMPLED_ROWS))
    both = np.concatenate([sample, sample + n])
    wanted = target[:, torch.from_numpy(both)]
    rows, columns = candidate.rows[both], candidate.columns[:, None]
    parts = []
    for stage in range(stages):
        for matrix in range(2):
            code = candidate.codes[stage, matrix][:, sample]
            for axis, table in enumerate((CODE_RE, CODE_IM)):
                part = np.zeros((m, 2, len(both)), np.float32)
                above, below = _SIGNS[matrix][axis]
                part[:, axis, : len(sample)] = above * table[code]
                part[:, 1 - axis, len(sample) :] = below * table[code]
                parts.append(torch.from_numpy(part.reshape(2 * m, -1) * rows * columns))
    seen = [metric.hessian @ part for part in parts]
    normal = np.array([[float((a * b).sum()) for b in parts] for a in seen])
    right = np.array([float((a * wanted).sum()) for a in seen])
    normal[np.diag_indices(len(parts))] += 1e-6 * np.trace(normal) / len(parts)
    found = np.linalg.solve(normal, right).astype(np.float32).reshape(candidate.scales.shape)
    if np.isfinite(found).all():
        candidate.scales = on_grid(found, normal) if is_grid else found
        rebuild(candidate)


def rebuild(candidate: Candidate) -> None:
    """Compute ``dense`` anew from codes, scales and multipliers."""
    _, _, m, n = candidate.codes.shape
    (u_re, u_im), (w_re, w_im) = sums_of(candidate.codes, candidate.scales)
    dense = candidate.dense.reshape(m, 2, 2 * n)
    dense[:, 0, :n], dense[:, 0, n:] = w_re + u_re, w_im + u_im
    dense[:, 1, :n], dense[:, 1, n:] = w_im - u_im, u_re - w_re
    dense *= candidate.rows
    dense *= candidate.columns.reshape(m, 2, 1)


def loss(target: Any, metric: Metric, candidate: Candidate) -> float:
    """``tr((A - Q) H (A - Q)^T) / tr(A H A^T)``: the squared relative error of the outputs, plus what damping adds."""
    import torch

    error = target - torch.from_numpy(candidate.dense)
    norm = float(((metric.hessian @ target) * target).sum())
    return float(((metric.hessian @ error) * error).sum()) / norm if norm else 0.0
