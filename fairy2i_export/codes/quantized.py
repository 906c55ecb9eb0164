"""A linear layer in Fairy2i form: codes, scales, multipliers, and the dense matrix that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import Profile
from fairy2i_export.codes.native import F32, F64, U8, Rows
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE, Rounding, keep, rounding_of

_CHUNK = 1 << 20  # values compared at a time
T = TypeVar("T", np.float32, np.float64)


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

    def rows(self, part: Rows) -> QuantizedLinear:
        """The layer of complex rows ``part`` alone: its real rows are i and n + i for i in ``part``."""
        upper, lower = slice(*part), slice(self.n + part[0], self.n + part[1])
        multiplier = self.row_multiplier
        if multiplier is not None:
            multiplier = np.concatenate([multiplier[upper], multiplier[lower]])
        return QuantizedLinear(self.codes[:, :, upper], self.scales, self.profile, multiplier, self.col_multiplier)

    def squares(self, weight: npt.NDArray[Any], part: Rows) -> F64:
        """Per complex row of ``part`` the sums of squares of ``A - Q(A)`` and of ``A``, [rows, 2], for ``weight`` A [2n, 2m]."""
        exact = np.concatenate([weight[slice(*part)], weight[self.n + part[0] : self.n + part[1]]]).astype(np.float64)
        dense = self.rows(part).dequantize("none")
        squares = np.stack([((exact - dense) ** 2).sum(axis=1), (exact**2).sum(axis=1)], axis=1)
        return np.asarray(squares.reshape(2, -1, 2).sum(axis=0))

    def dequantize(self, rounding: Literal["profile", "none"] = "profile") -> F32:
        """Rebuild the dense real matrix, float32 [2n, 2m].

        Args:
            rounding: ``profile`` rounds after every addition as the profile does: with ``bf16-reference`` and no multipliers
                the result equals the reference's dequantized weight bit for bit. ``none`` adds in float32 without rounding
                in between: the matrix that the ``Fairy2iMatMul`` operator multiplies by. The two differ by at most one
                bfloat16 step per entry.
        """
        rnd = keep if rounding == "none" else rounding_of(self.profile)
        (u_re, u_im), (w_re, w_im) = sums_of(self.codes, self.scales, rnd)
        dense = merge_widely_linear(u_re, u_im, w_re, w_im, rnd)
        if self.row_multiplier is not None:
            dense *= self.row_multiplier[:, None]
        if self.col_multiplier is not None:
            dense *= self.col_multiplier[None, :]
        return dense


class Coded(Protocol):
    """A layer whose scales are known and whose codes can be had a few rows at a time: what a layer is written from."""

    @property
    def n(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def scales(self) -> F32: ...
    @property
    def row_multiplier(self) -> F32 | None: ...
    @property
    def col_multiplier(self) -> F32 | None: ...
    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m], and per complex row the sums of squares of A - Q(A) and A."""


def sums_of(codes: U8, scales: F32, rnd: Rounding = keep) -> F32:
    """What codes stand for: float32 [2 (U, W), 2 (re, im), ...], stages added in their order, each sum rounded.

    Args:
        codes: uint8 [stages, 2 (U, W), ...].
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        rnd: of a profile.
    """
    sums = np.zeros((2, 2, *codes.shape[2:]), np.float32)
    for code, scale in zip(codes, scales, strict=True):
        for matrix in range(2):
            for axis, table in enumerate((CODE_RE, CODE_IM)):
                sums[matrix, axis] = rnd(sums[matrix, axis] + table[code[matrix]] * scale[matrix, axis])
    return sums


def merge_widely_linear(u_re: F32, u_im: F32, w_re: F32, w_im: F32, rnd: Rounding = keep) -> F32:
    """Four [n, m] blocks of U and W to one real matrix [2n, 2m], the inverse of the quantizer's split."""
    n, m = u_re.shape
    a = np.empty((2 * n, 2 * m), np.float32)
    a[:n, :m] = rnd(w_re + u_re)
    a[:n, m:] = rnd(w_im - u_im)
    a[n:, :m] = rnd(w_im + u_im)
    a[n:, m:] = rnd(u_re - w_re)
    return a


def split_widely_linear(a: npt.NDArray[T]) -> tuple[npt.NDArray[T], npt.NDArray[T], npt.NDArray[T], npt.NDArray[T]]:
    """Split a real matrix [2n, 2m] into (U_re, U_im, W_re, W_im), each [n, m] (method paper, section 3.1).

    The inverse of :func:`merge_widely_linear`, without the rounding of a profile.
    """
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    half = a.dtype.type(0.5)
    return half * (a11 + a22), half * (a21 - a12), half * (a11 - a22), half * (a12 + a21)


def relative_error(squares: F64) -> float:
    """``|A - Q(A)| / |A|`` in the Frobenius norm from the sums of squares of all rows, [rows, 2]; 0 for a matrix of zeros."""
    error, norm = math.fsum(squares[:, 0]), math.fsum(squares[:, 1])
    return math.sqrt(error / norm) if norm else 0.0


def change_of(weight: npt.NDArray[Any], q: QuantizedLinear) -> float:
    """:func:`relative_error` of a layer against a weight [2n, 2m], computed a few rows at a time."""
    step = max(1, _CHUNK // (4 * q.m))
    parts = [q.squares(weight, (start, min(start + step, q.n))) for start in range(0, q.n, step)]
    return relative_error(np.concatenate(parts))
