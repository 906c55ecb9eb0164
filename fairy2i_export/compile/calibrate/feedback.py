"""Second-order error feedback: codes of one pair of columns after another, each making up for the errors of those before.

After a pair has its codes, its error is spread over the pairs that are still to come, along the rows of the Cholesky factor R
of the inverse metric (metric.py): with E the error [2n, 2] of the pair and B its 2 x 2 block on the diagonal of R,
``later columns -= (E B^-1) R[pair, later]``. That is GPTQ with blocks of two. The codes of a pair are the nearest points
(:class:`fairy2i_export.codes.native.Points`) of its complex entries in U and in W; what rows and columns are multiplied by is
divided out before.

All functions work on transposed matrices [2m, 2n] with the columns of the layer, now rows, in the metric's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32, U8, Points
from fairy2i_export.compile.calibrate.metric import Metric

_BLOCK = 64  # pairs whose feedback to all later columns is one matrix product


@dataclass
class Candidate:
    """A quantized matrix in the making, transposed and in the metric's order of columns.

    Attributes:
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        rows: float32 [2n], multiplier of every output.
        columns: float32 [2m], multiplier of every input.
        codes: uint8 [stages, 2, m, n].
        dense: float32 [2m, 2n], the matrix that they stand for.
    """

    scales: F32
    rows: F32
    columns: F32
    codes: U8
    dense: F32

    def points(self) -> tuple[Points, Points]:
        """The points of U and of W."""
        return Points(self.scales[:, 0]), Points(self.scales[:, 1])


def round_pair(pair: F32, points: tuple[Points, Points], codes: U8, dense: F32) -> None:
    """The nearest points of pairs of columns that are divided by their multipliers already.

    Args:
        pair: float32 [..., 2, 2n]: columns j and j + m.
        points: of U and W.
        codes: uint8 [stages, 2, ..., n], written.
        dense: float32 like ``pair``, written: what the codes stand for.
    """
    n = pair.shape[-1] // 2
    a11, a21, a12, a22 = pair[..., 0, :n], pair[..., 0, n:], pair[..., 1, :n], pair[..., 1, n:]
    half = np.float32(0.5)
    codes[:, 0], u_re, u_im = points[0].round(half * (a11 + a22), half * (a21 - a12))
    codes[:, 1], w_re, w_im = points[1].round(half * (a11 - a22), half * (a12 + a21))
    dense[..., 0, :n], dense[..., 0, n:] = w_re + u_re, w_im + u_im
    dense[..., 1, :n], dense[..., 1, n:] = w_im - u_im, u_re - w_re


def feed_back(target: Any, metric: Metric, candidate: Candidate) -> None:
    """Choose the codes of all pairs, in order; writes ``codes`` and ``dense`` of the candidate.

    Args:
        target: torch float32 [2m, 2n], the matrix to come near to.
        metric: of the layer's inputs.
        candidate: its scales and multipliers count.
    """
    import torch

    points = candidate.points()
    work = target.clone()
    factor = metric.factor
    upper = factor.numpy()
    values: F32 = work.numpy()
    count = len(values)
    rows, columns = candidate.rows, candidate.columns
    for start in range(0, count, 2 * _BLOCK):
        stop = min(start + 2 * _BLOCK, count)
        errors = np.empty((stop - start, values.shape[1]), np.float32)
        error_tensor = torch.from_numpy(errors)
        for at in range(start, stop, 2):
            pair, scale = values[at : at + 2], columns[at : at + 2, None] * rows
            found = candidate.dense[at : at + 2]
            round_pair(pair / scale, points, candidate.codes[:, :, at // 2], found)
            found *= scale
            here = slice(at - start, at - start + 2)
            errors[here] = pair - found
            errors[here][0] /= upper[at, at]
            errors[here][1] -= errors[here][0] * upper[at, at + 1]
            errors[here][1] /= upper[at + 1, at + 1]
            if at + 2 < stop:
                work[at + 2 : stop].addmm_(factor[at : at + 2, at + 2 : stop].T, error_tensor[here], alpha=-1)
        if stop < count:
            work[stop:].addmm_(factor[start:stop, stop:].T, error_tensor, alpha=-1)
