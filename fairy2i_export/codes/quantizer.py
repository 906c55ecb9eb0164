"""The Fairy2i quantizer: a real matrix in, codes in {1, i, -1, -i} and a handful of scales out.

A real linear layer ``y = A x`` with ``A`` of shape [2n, 2m] is the widely-linear complex map ``y = U x + W conj(x)`` where
the complex vectors are made of contiguous halves, ``x = x[:m] + i x[m:]`` (Fairy2i, arXiv 2512.02901, section 3). U and W are
quantized each on its own. ``greedy`` is the published way, stage by stage: every entry of the residual goes to the nearest of
the four axis directions, each axis gets the mean magnitude of its entries as scale, and the next stage works on what is left
(greedy.py). ``joint`` chooses the codes of all stages together and fits the scales to them: the same format with a smaller
error from two stages on (joint.py).

Two numeric profiles exist. ``bf16-reference`` rounds to bfloat16 after every step exactly where the published training code
does, so that codes and scales are those the model was trained with. ``fp32`` runs the same formulas in float32.

This module is the only quantizer of the project: export, training and verification all call it. What is done to every entry
(split, codes, residuals, sums) is C, custom_ops/src/quantizer/quantize_rows.h, and exists only there; what is done once per matrix
(checks, scales) is here. A scale needs sums over the whole matrix, so finding scales takes passes over all rows; sums are
made and added in a fixed order, so results depend neither on threads nor on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.greedy import greedy_scales
from fairy2i_export.codes.joint import joint_scales
from fairy2i_export.codes.native import F32, F64, U8, LatentMatrix, Rows, each, row_blocks
from fairy2i_export.codes.profiles import (
    CODE_IM,
    CODE_RE,
    MAX_STAGES,
    PROFILES,
    Profile,
    Rounding,
    keep,
    round_to_bf16,
    rounding_of,
)
from fairy2i_export.codes.weight_checks import check_finite, check_multiplier, check_shape, looks_dequantized
from fairy2i_export.errors import OptionError, WeightError

__all__ = [
    "CODE_IM",
    "CODE_RE",
    "MAX_STAGES",
    "PROFILES",
    "QUANTIZERS",
    "ROW_MULTIPLIERS",
    "Profile",
    "QuantizedLinear",
    "Quantizer",
    "RowMultiplier",
    "Scaled",
    "find_scales",
    "looks_dequantized",
    "merge_widely_linear",
    "quantize",
    "round_to_bf16",
    "rounding_of",
]

Quantizer = Literal["greedy", "joint"]
RowMultiplier = Literal["none", "rms"]
QUANTIZERS: tuple[Quantizer, ...] = ("greedy", "joint")
ROW_MULTIPLIERS: tuple[RowMultiplier, ...] = ("none", "rms")


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer in Fairy2i form.

    Attributes:
        codes: uint8 [stages, 2 (U, W), n, m]; value k stands for i^k.
        scales: float32 [stages, 2 (U, W), 2 (re, im)]; the weight of code k is ``scale_re * Re(i^k) + i scale_im * Im(i^k)``.
        profile: the numeric profile the codes were chosen in.
        row_multiplier: float32 [2n], one factor per real output row, or None.
        col_multiplier: float32 [2m], one factor per real input column, or None.
    """

    codes: U8
    scales: F32
    profile: Profile = "bf16-reference"
    row_multiplier: F32 | None = None
    col_multiplier: F32 | None = None

    @property
    def stages(self) -> int:
        return int(self.codes.shape[0])

    @property
    def n(self) -> int:
        """Complex rows: half the real output features."""
        return int(self.codes.shape[2])

    @property
    def m(self) -> int:
        """Complex columns: half the real input features."""
        return int(self.codes.shape[3])

    def dequantize(self, rounding: Literal["profile", "none"] = "profile") -> F32:
        """Rebuild the dense real matrix, float32 [2n, 2m].

        Args:
            rounding: ``profile`` rounds after every addition as the profile does: with ``bf16-reference`` and no multipliers
                the result equals the reference's dequantized weight bit for bit. ``none`` adds in float32 without rounding
                in between: the matrix that the ``Fairy2iMatMul`` operator multiplies by. The two differ by at most one
                bfloat16 step per entry.
        """
        rnd = keep if rounding == "none" else rounding_of(self.profile)
        parts: list[tuple[F32, F32]] = []
        for matrix in range(2):
            re = np.zeros((self.n, self.m), np.float32)
            im = np.zeros((self.n, self.m), np.float32)
            for stage in range(self.stages):
                code = self.codes[stage, matrix]
                s_re, s_im = self.scales[stage, matrix]
                re = rnd(re + CODE_RE[code] * s_re)
                im = rnd(im + CODE_IM[code] * s_im)
            parts.append((re, im))
        dense = merge_widely_linear(*parts[0], *parts[1], rnd)
        if self.row_multiplier is not None:
            dense *= self.row_multiplier[:, None]
        if self.col_multiplier is not None:
            dense *= self.col_multiplier[None, :]
        return dense


def merge_widely_linear(u_re: F32, u_im: F32, w_re: F32, w_im: F32, rnd: Rounding = keep) -> F32:
    """Four [n, m] blocks of U and W to one real matrix [2n, 2m], the inverse of the quantizer's split."""
    n, m = u_re.shape
    a = np.empty((2 * n, 2 * m), np.float32)
    a[:n, :m] = rnd(w_re + u_re)
    a[:n, m:] = rnd(w_im - u_im)
    a[n:, :m] = rnd(w_im + u_im)
    a[n:, m:] = rnd(u_re - w_re)
    return a


@dataclass(frozen=True)
class Scaled:
    """A matrix whose scales are found: the codes of any rows can be had from it.

    Attributes:
        matrix: the latent weights, divided by the multipliers if there are any.
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        row_multiplier: float32 [2n] or None.
        col_multiplier: float32 [2m] or None.
    """

    matrix: LatentMatrix
    scales: F32
    row_multiplier: F32 | None = None
    col_multiplier: F32 | None = None

    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m], and per complex row the sums of squares of A - Q(A) and A."""
        return self.matrix.codes(rows, self.scales)


def quantize(
    weight: npt.ArrayLike,
    stages: int = 2,
    profile: Profile = "bf16-reference",
    *,
    quantizer: Quantizer = "greedy",
    row_multiplier: RowMultiplier | F32 = "none",
    col_multiplier: F32 | None = None,
    scales: F32 | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize the latent weight of one linear layer.

    Args:
        weight: real matrix [2n, 2m] (rows are output features), float32, float16, float64 or bfloat16, finite.
        stages: residual stages, 1 to 4; stages bits per real weight (W1 = 1, W2 = 2).
        profile: ``bf16-reference`` or ``fp32``.
        quantizer: ``greedy``, the published method, or ``joint``, which leaves a smaller error.
        row_multiplier: ``none`` is the published method. ``rms`` first divides every real row by its root mean square and
            keeps it as a multiplier per output row, for checkpoints that were trained that way. An array float32 [2n]
            (learned multipliers) is used as it is.
        col_multiplier: float32 [2m], factors per input column that the matrix is divided by after the rows, or None.
        scales: float32 [stages, 2 (U, W), 2 (re, im)] to use as they are (learned scales) instead of finding them, or None.
        name: how to call the tensor in error messages.

    Returns:
        Codes, scales and multipliers; see :class:`QuantizedLinear`.

    Raises:
        OptionError: unknown profile, stages, quantizer or row_multiplier.
        WeightError: not a matrix, odd or empty dimensions, non-finite values, a matrix that is already dequantized, or
            multipliers or scales of another shape, zero (multipliers) or not finite.
    """
    scaled = find_scales(
        weight,
        stages,
        profile,
        quantizer=quantizer,
        row_multiplier=row_multiplier,
        col_multiplier=col_multiplier,
        scales=scales,
        name=name,
    )
    codes, _ = scaled.codes((0, scaled.matrix.n))
    return QuantizedLinear(codes, scaled.scales, profile, scaled.row_multiplier, scaled.col_multiplier)


def find_scales(
    weight: npt.ArrayLike,
    stages: int,
    profile: Profile,
    *,
    quantizer: Quantizer = "greedy",
    row_multiplier: RowMultiplier | F32 = "none",
    col_multiplier: F32 | None = None,
    scales: F32 | None = None,
    name: str = "weight",
    pool: Executor | None = None,
) -> Scaled:
    """The passes over a whole matrix that :func:`quantize` begins with; arguments and errors as there.

    Args:
        weight: as for :func:`quantize`.
        stages: as there.
        profile: as there.
        quantizer: as there.
        row_multiplier: as there.
        col_multiplier: as there.
        scales: as there.
        name: as there.
        pool: threads to share the rows among.
    """
    rnd = rounding_of(profile)
    if isinstance(stages, bool) or stages not in range(1, MAX_STAGES + 1):
        raise OptionError(f"stages must be an integer from 1 to {MAX_STAGES}, got {stages!r}")
    if quantizer not in QUANTIZERS:
        raise OptionError(f"unknown quantizer {quantizer!r}: expected one of {', '.join(QUANTIZERS)}")
    array = np.asarray(weight)
    check_shape(array, name)
    matrix = LatentMatrix(array, stages, profile)
    rows = _rows(matrix, row_multiplier, rnd, name, pool)
    if rows is not None:
        matrix.divide_rows(rows)
    if col_multiplier is not None:
        col_multiplier = check_multiplier(col_multiplier, (2 * matrix.m,), f"{name}: column multiplier")
        matrix.divide_columns(col_multiplier)

    def check(sums: F64) -> None:
        check_finite(sums, array, name)
        if looks_dequantized(array):
            raise WeightError(
                f"{name}: this matrix is already a dequantized Fairy2i weight (its entries take only a few distinct "
                "values). Quantizing it again would change it; export the latent weights the model was trained with"
            )

    if scales is None:
        scales = greedy_scales(matrix, rnd, pool, check)
        if quantizer == "joint":
            scales = joint_scales(matrix, rnd, pool, scales)
    else:
        scales = check_multiplier(scales, (stages, 2, 2), f"{name}: scales", zero=True)
        check(np.concatenate(each(matrix.squares, row_blocks(matrix.n, matrix.m, 1), pool)))
        if quantizer == "joint":
            matrix.choose_jointly()
    return Scaled(matrix, scales, rows, col_multiplier)


def _rows(matrix: LatentMatrix, wanted: RowMultiplier | F32, rnd: Rounding, name: str, pool: Executor | None) -> F32 | None:
    """The row multiplier, float32 [2n], that is asked for."""
    if not isinstance(wanted, str):
        return check_multiplier(wanted, (2 * matrix.n,), f"{name}: row multiplier")
    if wanted not in ROW_MULTIPLIERS:
        raise OptionError(f"unknown row_multiplier {wanted!r}: expected one of {', '.join(ROW_MULTIPLIERS)}")
    if wanted == "none":
        return None
    return rms_of_rows(matrix, rnd, pool, lambda squares: check_finite(squares, matrix.array, name))


def rms_of_rows(
    matrix: LatentMatrix,
    rnd: Rounding,
    pool: Executor | None,
    check: Callable[[F64], None],
    blocks: Sequence[Rows] | None = None,
) -> F32:
    """Root mean square of every real row, float32 [2n], rounded; arguments as those of :func:`greedy_scales`."""
    blocks = row_blocks(matrix.n, matrix.m, 1) if blocks is None else blocks
    squares: F64 = np.concatenate(each(matrix.squares, blocks, pool))
    check(squares)
    rms: F32 = rnd(np.sqrt(squares.T.reshape(-1) / (2 * matrix.m)).astype(np.float32))
    rms[rms == 0] = 1  # a row of zeros: dividing by 1 changes nothing
    return rms
