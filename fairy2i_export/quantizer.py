"""The Fairy2i quantizer: a real matrix in, codes in {1, i, -1, -i} and a handful of scales out.

A real linear layer ``y = A x`` with ``A`` of shape [2n, 2m] is the widely-linear complex map ``y = U x + W conj(x)`` where
the complex vectors are made of contiguous halves, ``x = x[:m] + i x[m:]`` (Fairy2i, arXiv 2512.02901, section 3). U and W are
quantized each on its own, stage by stage: every entry of the residual goes to the nearest of the four axis directions, each
axis gets the mean magnitude of its entries as scale, and the next stage works on what is left.

Two numeric profiles exist. ``bf16-reference`` rounds to bfloat16 after every step exactly where the published training code
does, so that codes and scales are those the model was trained with. ``fp32`` runs the same formulas in float32.

This module is the only quantizer of the project: export, training and verification all call it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import OptionError, WeightError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Profile = Literal["bf16-reference", "fp32"]
RowMultiplier = Literal["none", "rms"]
Rounding = Callable[[F32], F32]

PROFILES: tuple[Profile, ...] = ("bf16-reference", "fp32")
ROW_MULTIPLIERS: tuple[RowMultiplier, ...] = ("none", "rms")
MAX_STAGES = 4
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


def split_widely_linear(a: F32, rnd: Rounding = _keep) -> tuple[F32, F32, F32, F32]:
    """Split a real matrix [2n, 2m] into (U_re, U_im, W_re, W_im), each float32 [n, m] (method paper, section 3.1)."""
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    half = np.float32(0.5)
    return (
        rnd(half * rnd(a11 + a22)),
        rnd(half * rnd(a21 - a12)),
        rnd(half * rnd(a11 - a22)),
        rnd(half * rnd(a12 + a21)),
    )


def merge_widely_linear(u_re: F32, u_im: F32, w_re: F32, w_im: F32, rnd: Rounding = _keep) -> F32:
    """Inverse of :func:`split_widely_linear`: four [n, m] blocks to one real matrix [2n, 2m]."""
    n, m = u_re.shape
    a = np.empty((2 * n, 2 * m), np.float32)
    a[:n, :m] = rnd(w_re + u_re)
    a[:n, m:] = rnd(w_im - u_im)
    a[n:, :m] = rnd(w_im + u_im)
    a[n:, m:] = rnd(u_re - w_re)
    return a


def phase_codes(re: F32, im: F32) -> U8:
    """Nearest axis direction of every complex entry: uint8 codes k with i^k, same shape as the inputs.

    The sector borders are those of the reference, [-pi/4, pi/4) -> 1 and so on counter-clockwise, decided by comparing
    magnitudes instead of angles: on a border (|re| = |im|) equal signs go to the imaginary axis, opposite signs to the real
    one. A zero entry becomes 1, or -1 when both parts are negative zeros, as the reference's angle function has it.
    """
    neg_re, neg_im = np.signbit(re), np.signbit(im)
    abs_re, abs_im = np.abs(re), np.abs(im)
    real_axis = (abs_re > abs_im) | ((abs_re == abs_im) & ((neg_re != neg_im) | (abs_re == 0)))
    code = np.where(real_axis, 2 * neg_re.view(np.uint8), 1 + 2 * neg_im.view(np.uint8)).astype(np.uint8)
    zero = (abs_re == 0) & (abs_im == 0)
    if zero.any():
        code[zero] = 2 * (neg_re & neg_im)[zero]
    return code


def _axis_scale(magnitudes: F32, rnd: Rounding) -> np.float32:
    """Mean magnitude of the entries of one axis, summed in float64, rounded as the profile rounds, never below the floor."""
    mean = np.float32(magnitudes.sum(dtype=np.float64) / magnitudes.size) if magnitudes.size else np.float32(0)
    floor = rnd(np.full(1, SCALE_FLOOR, np.float32))[0]
    return np.float32(max(rnd(np.full(1, mean, np.float32))[0], floor))


def _quantize_complex(re: F32, im: F32, stages: int, rnd: Rounding) -> tuple[U8, F32]:
    """Greedy residual phase quantization of one complex matrix [n, m]: codes [stages, n, m], scales [stages, 2]."""
    codes = np.empty((stages, *re.shape), np.uint8)
    scales = np.empty((stages, 2), np.float32)
    for stage in range(stages):
        code = phase_codes(re, im)
        on_imag = (code & 1).astype(bool)
        scales[stage] = _axis_scale(np.abs(re[~on_imag]), rnd), _axis_scale(np.abs(im[on_imag]), rnd)
        codes[stage] = code
        if stage + 1 < stages:
            re = rnd(re - CODE_RE[code] * scales[stage, 0])
            im = rnd(im - CODE_IM[code] * scales[stage, 1])
    return codes, scales


def _row_rms(a: F32, rnd: Rounding) -> F32:
    """Root mean square of every row, float32 [rows]; rows of zeros get 1 so that dividing by it changes nothing."""
    rms = np.sqrt(np.mean(np.square(a, dtype=np.float64), axis=1)).astype(np.float32)
    rms = rnd(rms)
    rms[rms == 0] = 1
    return rms


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
    rnd = rounding_of(profile)
    if isinstance(stages, bool) or stages not in range(1, MAX_STAGES + 1):
        raise OptionError(f"stages must be an integer from 1 to {MAX_STAGES}, got {stages!r}")
    if row_multiplier not in ROW_MULTIPLIERS:
        raise OptionError(f"unknown row_multiplier {row_multiplier!r}: expected one of {', '.join(ROW_MULTIPLIERS)}")
    a = _checked_matrix(weight, name)
    a = rnd(a)
    rows = None
    if row_multiplier == "rms":
        rows = _row_rms(a, rnd)
        a = rnd(a / rows[:, None])
    u_re, u_im, w_re, w_im = split_widely_linear(a, rnd)
    u_codes, u_scales = _quantize_complex(u_re, u_im, stages, rnd)
    w_codes, w_scales = _quantize_complex(w_re, w_im, stages, rnd)
    return QuantizedLinear(
        codes=np.stack([u_codes, w_codes], axis=1),
        scales=np.stack([u_scales, w_scales], axis=1),
        profile=profile,
        row_multiplier=rows,
    )


def _checked_matrix(weight: npt.ArrayLike, name: str) -> F32:
    array = np.asarray(weight)
    if array.ndim != 2:
        raise WeightError(f"{name}: expected a matrix [out, in], got shape {array.shape}")
    rows, cols = array.shape
    if rows == 0 or cols == 0 or rows % 2 or cols % 2:
        raise WeightError(
            f"{name}: expected even, non-zero dimensions (a complex entry is two real ones), got [{rows}, {cols}]; "
            "keep this layer dense (--exclude)"
        )
    a = array.astype(np.float32)
    finite = np.isfinite(a)
    if not finite.all():
        row, col = np.argwhere(~finite)[0]
        raise WeightError(
            f"{name}: {int(a.size - finite.sum())} of {a.size} values are not finite, the first at row {row}, column {col} "
            f"({a[row, col]}); the checkpoint is damaged or training diverged, export an earlier one"
        )
    if looks_dequantized(a):
        raise WeightError(
            f"{name}: this matrix is already a dequantized Fairy2i weight (its entries take only a few distinct values). "
            "Quantizing it again would change it; export the latent weights the model was trained with"
        )
    return a


def looks_dequantized(a: F32) -> bool:
    """Whether a real matrix [2n, 2m] is the output of a Fairy2i dequantization rather than latent weights.

    Heuristic, calibrated in tests/test_quantizer.py: after T stages a part of U or W takes at most (3^T + 1) / 2 magnitudes,
    41 at four stages, while latent weights fill a fine grid even in bfloat16. Matrices too small to tell (fewer than 1,024
    complex entries) and all-zero ones count as latent; weights dequantized with row multipliers are not recognized.
    """
    u_re, _, w_re, _ = split_widely_linear(a)
    if u_re.size < 1024:
        return False
    for part in (u_re, w_re):
        magnitude = np.abs(part.reshape(-1)[: 1 << 16])
        top = np.quantile(magnitude, 0.99)  # not the maximum: one outlier would squeeze the rest into a few cells
        if top == 0:
            return False
        # cells finer than any scale and coarser than the rounding of sums of bfloat16 numbers
        cells = np.round(np.minimum(magnitude, top) * (256 / top))
        if np.unique(cells).size > 100:
            return False
    return True
