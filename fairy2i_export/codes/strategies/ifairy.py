"""The quantizer of iFairy: a complex matrix W [n, m] to one code per entry and two scales, for layers ``y = W conj(x)``.

Codes are chosen by phase as for Fairy2i, of which such a layer is the case U = 0. A scale is the mean magnitude of the entries on
its axis, at least 1e-5, and goes through two reciprocals in the released code, each rounded by the profile.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import Profile
from fairy2i_export.codes.native import F32, F64, U8, LatentMatrix, Rows, each, row_blocks
from fairy2i_export.codes.profiles import Rounding, rounding_of
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.strategies.greedy import exact_means
from fairy2i_export.codes.weight_checks import check_finite
from fairy2i_export.errors import WeightError

FLOOR = np.float32(1e-5)  # smallest mean, of the released code


class ConjugateLinear:
    """A matrix whose scales are found: the codes of any rows can be had from it (codes.quantized.Coded).

    Attributes:
        matrix: stands for the real matrix [[re, im], [im, -re]] of the layer, which is not formed.
        scales: float32 [1, 2 (U, W), 2 (re, im)]; those of U, which is not there, are zeros.
    """

    stages = 1
    row_multiplier: F32 | None = None
    col_multiplier: F32 | None = None

    def __init__(self, matrix: LatentMatrix, scales: F32) -> None:
        self.matrix, self.scales = matrix, scales
        self.n, self.m = matrix.n, matrix.m

    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [1, 2 (U, W), rows, m], and per complex row the sums of squares of A - Q(A) and A."""
        return self.matrix.codes(rows, self.scales)


def find_conjugate(
    weight: npt.NDArray[Any], profile: Profile, *, name: str = "weight", pool: Executor | None = None
) -> ConjugateLinear:
    """Find the scales of a complex matrix.

    Args:
        weight: [2n, m], real parts above imaginary ones; float32, float16 or bfloat16.
        profile: ``bf16-reference`` or ``fp32``.
        name: how to call the tensor in error messages.
        pool: threads to share the rows among.

    Raises:
        WeightError: values that are not finite, or no entry on one of the axes, whose scale the released code makes NaN.
    """
    re, im = np.split(weight, 2)
    matrix = LatentMatrix(re, 1, profile, im)
    none = np.empty((0, 2, 2), np.float32)
    parts = each(lambda rows: matrix.sums(rows, none), row_blocks(matrix.n, matrix.m, 1), pool)
    sums, counts = np.concatenate([part[0] for part in parts])[:, 1], sum(part[1].sum(axis=0) for part in parts)[1]
    check_finite(sums, weight, name)
    for axis, count in zip(("real", "imaginary"), counts, strict=True):
        if not count:
            raise WeightError(
                f"{name}: no entry lies nearer to the {axis} axis than to the other, so there is no scale for it; the released "
                "code computes NaN from such a matrix: the checkpoint is damaged"
            )
    scales = np.zeros((1, 2, 2), np.float32)
    scales[0, 1] = _twice_inverted(exact_means(sums, counts), rounding_of(profile))
    return ConjugateLinear(matrix, scales)


def _twice_inverted(means: F32, rnd: Rounding) -> F32:
    one = np.ones(1, np.float32)
    floored: F32 = np.maximum(rnd(means), rnd(FLOOR * one))
    return rnd(one / rnd(one / floored))


def quantize_conjugate(weight: npt.NDArray[Any], profile: Profile, *, name: str = "weight") -> QuantizedLinear:
    """Quantize a complex matrix; arguments and errors as :func:`find_conjugate`."""
    found = find_conjugate(weight, profile, name=name)
    codes, _ = found.codes((0, found.n))
    return QuantizedLinear(codes, found.scales, profile)
