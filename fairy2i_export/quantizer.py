"""The Fairy2i quantizer: a real matrix in, codes in {1, i, -1, -i} and a handful of scales out.

A real linear layer ``y = A x`` with ``A`` of shape [2n, 2m] is the widely-linear complex map ``y = U x + W conj(x)`` where
the complex vectors are made of contiguous halves, ``x = x[:m] + i x[m:]`` (Fairy2i, arXiv 2512.02901, section 3). U and W are
quantized each on its own, stage by stage: every entry of the residual goes to the nearest of the four axis directions, each
axis gets the mean magnitude of its entries as scale, and the next stage works on what is left.

Two numeric profiles exist. ``bf16-reference`` rounds to bfloat16 after every step exactly where the published training code
does, so that codes and scales are those the model was trained with. ``fp32`` runs the same formulas in float32.

This module is the only quantizer of the project: export, training and verification all call it. What is done to every entry
(split, codes, residuals, sums) is C, custom_ops/src/quantize_rows.h, and exists only there; what is done once per matrix
(checks, scales) is here. A scale needs a sum over the whole matrix, so each stage is a pass over all rows; sums are made per
complex row in a fixed order and added exactly, so results depend neither on threads nor on blocks nor on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import OptionError, WeightError
from fairy2i_export.native import F32, F64, U8, LatentMatrix, Rows, each, row_blocks

Profile = Literal["bf16-reference", "fp32"]
RowMultiplier = Literal["none", "rms"]
Rounding = Callable[[F32], F32]

PROFILES: tuple[Profile, ...] = ("bf16-reference", "fp32")
ROW_MULTIPLIERS: tuple[RowMultiplier, ...] = ("none", "rms")
MAX_STAGES = 4
_SAMPLE = 1 << 16  # complex entries that tell latent from dequantized weights
SCALE_FLOOR = 1e-6  # smallest scale; the reference clamps the mean of an empty axis to it

# code k stands for i^k: (re, im) of 1, i, -1, -i
CODE_RE = np.array([1, 0, -1, 0], dtype=np.float32)
CODE_IM = np.array([0, 1, 0, -1], dtype=np.float32)


def round_to_bf16(x: F32) -> F32:
    """Round float32 values to the nearest bfloat16 (ties to even) and return them as float32, any shape."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _keep(x: F32) -> F32:
    return x


def rounding_of(profile: str) -> Rounding:
    """The rounding that ``profile`` applies after every arithmetic step.

    Raises:
        OptionError: if the profile is unknown.
    """
    if profile == "bf16-reference":
        return round_to_bf16
    if profile == "fp32":
        return _keep
    raise OptionError(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")


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
        rnd = _keep if rounding == "none" else rounding_of(self.profile)
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


def merge_widely_linear(u_re: F32, u_im: F32, w_re: F32, w_im: F32, rnd: Rounding = _keep) -> F32:
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
        matrix: the latent weights, divided by the row multiplier if there is one.
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        row_multiplier: float32 [2n] or None.
    """

    matrix: LatentMatrix
    scales: F32
    row_multiplier: F32 | None

    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m], and per complex row the sums of squares of A - Q(A) and A."""
        return self.matrix.codes(rows, self.scales)


def quantize(
    weight: npt.ArrayLike,
    stages: int = 2,
    profile: Profile = "bf16-reference",
    *,
    row_multiplier: RowMultiplier = "none",
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize the latent weight of one linear layer.

    Args:
        weight: real matrix [2n, 2m] (rows are output features), float32, float16, float64 or bfloat16, finite.
        stages: residual stages, 1 to 4; stages bits per real weight (W1 = 1, W2 = 2).
        profile: ``bf16-reference`` or ``fp32``.
        row_multiplier: ``none`` is the published method. ``rms`` first divides every real row by its root mean square and
            keeps it as a multiplier per output row, for checkpoints that were trained that way.
        name: how to call the tensor in error messages.

    Returns:
        Codes, scales and multipliers; see :class:`QuantizedLinear`.

    Raises:
        OptionError: unknown profile, stages or row_multiplier.
        WeightError: not a matrix, odd or empty dimensions, non-finite values, or a matrix that is already dequantized.
    """
    scaled = find_scales(weight, stages, profile, row_multiplier=row_multiplier, name=name)
    codes, _ = scaled.codes((0, scaled.matrix.n))
    return QuantizedLinear(codes, scaled.scales, profile, scaled.row_multiplier)


def find_scales(
    weight: npt.ArrayLike,
    stages: int,
    profile: Profile,
    *,
    row_multiplier: RowMultiplier = "none",
    name: str = "weight",
    pool: Executor | None = None,
) -> Scaled:
    """The passes over a whole matrix that :func:`quantize` begins with; arguments and errors as there.

    Args:
        weight: as for :func:`quantize`.
        stages: as there.
        profile: as there.
        row_multiplier: as there.
        name: as there.
        pool: threads to share the rows among.
    """
    rnd = rounding_of(profile)
    if isinstance(stages, bool) or stages not in range(1, MAX_STAGES + 1):
        raise OptionError(f"stages must be an integer from 1 to {MAX_STAGES}, got {stages!r}")
    if row_multiplier not in ROW_MULTIPLIERS:
        raise OptionError(f"unknown row_multiplier {row_multiplier!r}: expected one of {', '.join(ROW_MULTIPLIERS)}")
    array = np.asarray(weight)
    _check_shape(array, name)
    matrix = LatentMatrix(array, stages, profile)
    blocks = row_blocks(matrix.n, matrix.m, 1)
    rows = None
    if row_multiplier == "rms":
        squares: F64 = np.concatenate(each(matrix.squares, blocks, pool))
        _check_finite(squares, array, name)
        rows = _row_rms(squares.T.reshape(-1) / array.shape[1], rnd)
        matrix.divide_rows(rows)
    scales = np.empty((0, 2, 2), np.float32)
    for stage in range(stages):
        parts = each(lambda part: matrix.sums(part, scales), blocks, pool)  # noqa: B023 - called before scales changes
        sums = np.concatenate([part[0] for part in parts])
        counts = sum(part[1].sum(axis=0) for part in parts)
        if stage == 0:
            _check_finite(sums, array, name)
            if looks_dequantized(array):
                raise WeightError(
                    f"{name}: this matrix is already a dequantized Fairy2i weight (its entries take only a few distinct "
                    "values). Quantizing it again would change it; export the latent weights the model was trained with"
                )
        found = [[_axis_scale(sums[:, u_w, axis], counts[u_w, axis], rnd) for axis in range(2)] for u_w in range(2)]
        scales = np.concatenate([scales, np.array([found], np.float32)])
    return Scaled(matrix, scales, rows)


def _axis_scale(row_sums: F64, count: int, rnd: Rounding) -> np.float32:
    """Mean magnitude of the entries of one axis, added exactly, rounded as the profile rounds, never below the floor."""
    mean = np.float32(math.fsum(row_sums) / count) if count else np.float32(0)
    floor = rnd(np.full(1, SCALE_FLOOR, np.float32))[0]
    return np.float32(max(rnd(np.full(1, mean, np.float32))[0], floor))


def _row_rms(mean_squares: F64, rnd: Rounding) -> F32:
    """Root mean square of every row, float32 [rows]; rows of zeros get 1 so that dividing by it changes nothing."""
    rms = rnd(np.sqrt(mean_squares).astype(np.float32))
    rms[rms == 0] = 1
    return rms


def _check_shape(array: npt.NDArray[Any], name: str) -> None:
    if array.ndim != 2:
        raise WeightError(f"{name}: expected a matrix [out, in], got shape {array.shape}")
    rows, cols = array.shape
    if rows == 0 or cols == 0 or rows % 2 or cols % 2:
        raise WeightError(
            f"{name}: expected even, non-zero dimensions (a complex entry is two real ones), got [{rows}, {cols}]; "
            "keep this layer dense (--exclude)"
        )


def _check_finite(sums: F64, array: npt.NDArray[Any], name: str) -> None:
    """Refuse a matrix some of whose sums are not finite, and say where the first such value is."""
    if np.isfinite(sums).all():
        return
    bad = 0
    first: tuple[int, int] | None = None
    for row, values in enumerate(array):  # a row at a time: this may be the largest matrix
        finite = np.isfinite(values.astype(np.float32))
        if first is None and not finite.all():
            first = row, int(np.argmin(finite))
        bad += int(finite.size - finite.sum())
    if first is None:
        raise WeightError(
            f"{name}: values up to {np.abs(array).max()} overflow when they are added; the checkpoint is damaged"
        )
    raise WeightError(
        f"{name}: {bad} of {array.size} values are not finite, the first at row {first[0]}, column {first[1]} "
        f"({float(array[first]):g}); the checkpoint is damaged or training diverged, export an earlier one"
    )


def looks_dequantized(a: npt.NDArray[Any]) -> bool:
    """Whether a real matrix [2n, 2m] is the output of a Fairy2i dequantization rather than latent weights.

    Heuristic, calibrated in tests/test_quantizer.py: after T stages a part of U or W takes at most (3^T + 1) / 2 magnitudes,
    41 at four stages, while latent weights fill a fine grid even in bfloat16. Matrices too small to tell (fewer than 1,024
    complex entries) and all-zero ones count as latent; weights dequantized with row multipliers are not recognized.
    """
    n, m = a.shape[0] // 2, a.shape[1] // 2
    if n * m < 1024:
        return False
    rows = min(n, -(-_SAMPLE // m))
    upper, lower = a[:rows, :m].astype(np.float32), a[n : n + rows, m:].astype(np.float32)
    for twice_real_part in (upper + lower, upper - lower):  # of U, of W
        magnitude = np.abs(twice_real_part.reshape(-1)[:_SAMPLE])
        place = int(0.99 * (magnitude.size - 1))
        top = np.partition(magnitude, place)[place]  # not the maximum: one outlier would squeeze the rest into a few cells
        if top == 0:
            return False
        # cells finer than any scale and coarser than the rounding of sums of bfloat16 numbers
        cells = np.rint(np.minimum(magnitude, top) * (256 / top)).astype(np.int64)
        if np.count_nonzero(np.bincount(cells)) > 100:
            return False
    return True
