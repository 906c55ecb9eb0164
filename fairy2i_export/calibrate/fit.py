"""Scales and multipliers of a matrix: where they start, and least squares in the metric of the inputs once codes are chosen.

Everything is transposed, [2m, 2n], and in the metric's order of columns, as in feedback.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairy2i_export.calibrate.feedback import Candidate, round_pair
from fairy2i_export.calibrate.metric import Metric
from fairy2i_export.native import F32
from fairy2i_export.quantizer import CODE_IM, CODE_RE

# stage scales that round Gaussian entries of unit variance best when all stages are chosen together
GAUSSIAN_SCALES = {1: (1.131,), 2: (1.392, 0.748), 3: (1.398, 1.060, 0.643), 4: (1.444, 1.058, 0.746, 0.532)}
# signs of Re and Im of U and of W in the upper half of a matrix (column j for Re, j + m for Im), and in the lower (the other)
_SIGNS = (((1, 1), (-1, 1)), ((1, -1), (1, 1)))
_SHRINKING = (0.75, 0.85, 0.92, 1.0, 1.1, 1.25)  # of a row's multiplier: clip outliers, or be finer in the middle
_SAMPLED_PAIRS = 256  # of columns that the search looks at
_SAMPLED_ROWS = 128  # complex rows that scales are fitted to


def start(target: Any, metric: Metric, stages: int) -> Candidate:
    """A candidate without codes: scales for Gaussian entries, rows of unit variance, each shrunk as plain rounding likes best.

    Args:
        target: torch float32 [2m, 2n].
        metric: of the inputs.
        stages: 1 to 4.
    """
    values: F32 = target.numpy()
    count, n = len(values), values.shape[1] // 2
    rows = np.sqrt(np.mean(values.astype(np.float64) ** 2, axis=0)).astype(np.float32)
    rows[rows == 0] = 1
    # U and W are half the sum of two entries of unit variance
    scales = np.tile(np.array(GAUSSIAN_SCALES[stages], np.float32)[:, None, None] * np.float32(0.5**0.5), (1, 2, 2))
    columns = np.ones(count, np.float32)
    candidate = Candidate(scales, rows, columns, np.zeros((stages, 2, count // 2, n), np.uint8), np.zeros_like(values))
    step = -(-count // 2 // _SAMPLED_PAIRS)
    sample = values.reshape(-1, 2, 2 * n)[::step] / rows
    weight = metric.diagonal.reshape(-1, 2, 1)[::step]
    points, codes, found = candidate.points(), np.empty((stages, 2, len(sample), n), np.uint8), np.empty_like(sample)
    losses = []
    for factor in _SHRINKING:
        round_pair(sample / np.float32(factor), points, codes, found)
        found *= np.float32(factor)
        # in parts of the row's own variance, so that a pair of rows shares one factor
        loss = (weight * (sample - found) ** 2).sum(axis=(0, 1), dtype=np.float64) * rows.astype(np.float64) ** 2
        losses.append(loss[:n] + loss[n:])
    best = np.array(_SHRINKING, np.float32)[np.argmin(losses, axis=0)]
    candidate.rows = rows * np.tile(best, 2)
    return candidate


def refit_rows(target: Any, metric: Metric, candidate: Candidate) -> None:
    """Multiply every row by the factor that brings its outputs nearest to the target's."""
    import torch

    dense = torch.from_numpy(candidate.dense)
    seen = metric.hessian @ dense
    factor = ((seen * target).sum(0) / (seen * dense).sum(0).clamp(min=1e-30)).clamp(0.5, 2.0).numpy()
    candidate.rows = candidate.rows * factor
    candidate.dense *= factor


def refit_scales(target: Any, metric: Metric, candidate: Candidate) -> None:
    """The scales of all stages, of U and W and of both axes, that bring the outputs of these codes nearest to the target's."""
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
        candidate.scales = found
        rebuild(candidate)


def rebuild(candidate: Candidate) -> None:
    """Compute ``dense`` anew from codes, scales and multipliers."""
    stages, _, m, n = candidate.codes.shape
    parts = np.zeros((2, 2, m, n), np.float32)
    for stage in range(stages):
        for matrix in range(2):
            code, (s_re, s_im) = candidate.codes[stage, matrix], candidate.scales[stage, matrix]
            parts[matrix, 0] += CODE_RE[code] * s_re
            parts[matrix, 1] += CODE_IM[code] * s_im
    (u_re, u_im), (w_re, w_im) = parts
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
