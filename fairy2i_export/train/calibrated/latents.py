"""Latent weights whose codes are given ones.

Error feedback chooses codes that are not the nearest points of the weights they stand for, so the weights themselves would be
rounded to other codes. A latent entry lies on the way from the point of its code to the weight that the code was chosen for:
where the weight lies beyond the border of the point's cell, just inside of it. So codes are those of the calibration, and the
entries that were nearly something else are those that training changes first.
"""

from __future__ import annotations

import numpy as np

from fairy2i_export.codes.native import F32, LatentMatrix, Points
from fairy2i_export.codes.quantized import QuantizedLinear, merge_widely_linear, split_widely_linear, sums_of
from fairy2i_export.codes.strategies import CALIBRATED
from fairy2i_export.errors import CheckpointError

INSIDE = (
    0.5  # share of the way to the weight, or to the border of the cell, that an entry goes; 0 trained a small model as well
)
_HALVINGS = 8  # of the way, to find the border
_SAME = 1e-5  # points so near to each other, relative to the largest, are one


def latents_of(quantized: QuantizedLinear, weight: F32 | None, name: str = "weight", inside: float = INSIDE) -> F32:
    """A latent weight that the joint quantizer, with the layer's scales and multipliers, gives the layer's codes.

    Args:
        quantized: codes [stages, 2, n, m], scales, multipliers; profile fp32.
        weight: what the codes stand for, [2n, 2m]; None if that is not known: then entries lie on the points.
        name: how to call the layer in messages.
        inside: see INSIDE; 0 is the point itself, below 1.

    Returns:
        float32 [2n, 2m].

    Raises:
        CheckpointError: there is no such weight: some points of the scales coincide.
    """
    points = sums_of(quantized.codes, quantized.scales)
    share = np.zeros((2, quantized.n, quantized.m), np.float32)
    aim = points
    if weight is not None and inside > 0:
        u_re, u_im, w_re, w_im = split_widely_linear(weight.astype(np.float32) / _multipliers(quantized))
        aim = np.stack([np.stack([u_re, u_im]), np.stack([w_re, w_im])])
        share = np.stack([_share(quantized, matrix, points[matrix], aim[matrix]) for matrix in range(2)])
        share *= np.float32(inside)
    found = _merged(quantized, points, aim, share)
    wrong = _wrong(quantized, found)
    if wrong.any():  # float32 of the product with the multipliers, where a cell is narrow
        share[wrong] = 0
        found = _merged(quantized, points, aim, share)
        _check_points(quantized, found, _wrong(quantized, found), name)
    return found


def _multipliers(quantized: QuantizedLinear) -> F32:
    """What every real entry is multiplied by, float32, [2n, 2m] or what broadcasts to it."""
    factors = np.ones((1, 1), np.float32)
    if quantized.row_multiplier is not None:
        factors = factors * quantized.row_multiplier[:, None]
    if quantized.col_multiplier is not None:
        factors = factors * quantized.col_multiplier[None, :]
    return factors


def _share(quantized: QuantizedLinear, matrix: int, point: F32, aim: F32) -> F32:
    """How far every entry of U or W can go from its point towards ``aim``, 0 to 1, and keep its code: [n, m].

    Cells are convex, so that a border is crossed once.
    """
    table, codes = Points(quantized.scales[:, matrix]), quantized.codes[:, matrix]
    way = aim - point

    def keeps(share: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        at = point + share * way
        return np.asarray((table.codes(at[0], at[1]) == codes).all(axis=0))

    good = np.zeros(point.shape[1:], np.float32)
    whole = keeps(np.ones_like(good))
    bad = np.ones_like(good)
    for _ in range(_HALVINGS):
        middle = ((good + bad) / 2).astype(np.float32)
        inside = keeps(middle)
        good, bad = np.where(inside, middle, good), np.where(inside, bad, middle)
    return np.where(whole, np.float32(1), good)


def _merged(quantized: QuantizedLinear, points: F32, aim: F32, share: F32) -> F32:
    """The real matrix [2n, 2m] of entries that lie ``share`` [2, n, m] of the way from their points to ``aim``."""
    at = points + share[:, None] * (aim - points)
    return merge_widely_linear(*at[0], *at[1]) * _multipliers(quantized)


def _wrong(quantized: QuantizedLinear, latent: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which entries the quantizer gives other codes, [2, n, m]."""
    return np.asarray((_codes(quantized, latent) != quantized.codes).any(axis=0))


def _codes(quantized: QuantizedLinear, latent: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    matrix = LatentMatrix(latent, quantized.stages, "fp32")
    if quantized.row_multiplier is not None:
        matrix.divide_rows(quantized.row_multiplier)
    if quantized.col_multiplier is not None:
        matrix.divide_columns(quantized.col_multiplier)
    CALIBRATED.choose(matrix)
    return matrix.codes((0, matrix.n), quantized.scales)[0]


def _check_points(
    quantized: QuantizedLinear, latent: F32, wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], name: str
) -> None:
    """Raise unless codes that could not be kept stand for the same numbers as those that came instead."""
    if not wrong.any():
        return
    other = QuantizedLinear(_codes(quantized, latent), quantized.scales, "fp32")
    difference = np.abs(sums_of(other.codes, other.scales) - sums_of(quantized.codes, quantized.scales)).max()
    if not difference <= _SAME * np.abs(quantized.scales).max():
        raise CheckpointError(
            f"{name}: {int(wrong.sum())} codes of the calibrated layer are those of no weight, for two points of its scales are "
            "too near to each other for float32; calibrate again, with another text or number of tokens"
        )
