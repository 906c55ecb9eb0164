"""Activations as layers with ``activation_bits`` read them: each half of a row rounded to whole numbers (docs/format.md)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ACTIVATION_BITS = (0, 8)
SMALLEST = (
    1e-5  # largest magnitude of a half below which it is rounded as if it had this one; of the released code of iFairy
)


def rounded_activations(x: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """What a layer computes with, float32 as x [..., K]: rounded in float32, and divided by the same scale again.

    Args:
        x: real parts of all columns, then imaginary ones; col_multiplier applied.
        bits: 0 leaves x as it is; 8 makes the largest magnitude of a half 127.
    """
    if bits == 0:
        return x
    top = np.float32(2 ** (bits - 1) - 1)
    halves = x.reshape(*x.shape[:-1], 2, -1)
    scale = top / np.maximum(np.abs(halves).max(axis=-1, keepdims=True), np.float32(SMALLEST))
    rounded = np.clip(np.rint(halves * scale), -top - 1, top) / scale
    return np.asarray(rounded.reshape(x.shape), np.float32)
