"""Dense matrices seen with the quantizer's eyes: their complex parts, and how far a quantized layer is from them.

For matrices whose codes exist already (recovered, stored, compared); what chooses codes is quantizer.py alone.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32
from fairy2i_export.codes.quantizer import QuantizedLinear

_CHUNK = 1 << 20  # values compared at a time
T = TypeVar("T", np.float32, np.float64)


def split_widely_linear(a: npt.NDArray[T]) -> tuple[npt.NDArray[T], npt.NDArray[T], npt.NDArray[T], npt.NDArray[T]]:
    """Split a real matrix [2n, 2m] into (U_re, U_im, W_re, W_im), each [n, m] (method paper, section 3.1).

    The inverse of :func:`fairy2i_export.codes.quantizer.merge_widely_linear`, without the rounding of a profile.
    """
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    half = a.dtype.type(0.5)
    return half * (a11 + a22), half * (a21 - a12), half * (a11 - a22), half * (a12 + a21)


def relative_error(weight: npt.NDArray[Any], q: QuantizedLinear) -> float:
    """``|A - Q(A)| / |A|`` in the Frobenius norm, computed a few rows at a time; 0 for a matrix of zeros."""
    n = q.n
    step = max(1, _CHUNK // (4 * q.m))
    error = norm = 0.0
    for start in range(0, n, step):
        upper = slice(start, min(start + step, n))
        lower = slice(n + start, n + min(start + step, n))
        rows: F32 | None = None
        if q.row_multiplier is not None:
            rows = np.concatenate([q.row_multiplier[upper], q.row_multiplier[lower]])
        part = QuantizedLinear(q.codes[:, :, upper], q.scales, q.profile, rows, q.col_multiplier)
        a = np.concatenate([weight[upper], weight[lower]]).astype(np.float32)
        error += float(np.square(a - part.dequantize("none"), dtype=np.float64).sum())
        norm += float(np.square(a, dtype=np.float64).sum())
    return float(np.sqrt(error / norm)) if norm else 0.0
