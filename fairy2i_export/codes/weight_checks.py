"""What is refused before or while a weight is quantized: wrong shapes, values that are not finite, dequantized matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32, F64
from fairy2i_export.errors import WeightError

_SAMPLE = 1 << 16  # complex entries that tell latent from dequantized weights


def as_array(weight: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    """The numbers of a weight; a WeightError if it holds anything else."""
    try:
        array = np.asarray(weight)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind in "OSUMm":
        raise WeightError(f"{name}: expected a matrix of numbers [out, in], got {type(weight).__name__} {weight!r:.60}")
    return array


def check_shape(array: npt.NDArray[Any], name: str) -> None:
    """Refuse what is not a matrix of even, non-zero dimensions."""
    if array.ndim != 2:
        raise WeightError(f"{name}: expected a matrix [out, in], got shape {array.shape}")
    rows, cols = array.shape
    if rows == 0 or cols == 0 or rows % 2 or cols % 2:
        raise WeightError(
            f"{name}: expected even, non-zero dimensions (a complex entry is two real ones), got [{rows}, {cols}]; "
            "keep this layer dense (--exclude)"
        )


def check_multiplier(value: npt.ArrayLike, shape: tuple[int, ...], what: str, *, zero: bool = False) -> F32:
    """A learned operand as float32, once it is known to be usable.

    Args:
        value: row or column multipliers, or scales.
        shape: that it must have.
        what: how to call it in messages.
        zero: whether zeros are allowed; nothing can be divided by them.

    Raises:
        WeightError: another shape or dtype, or a value that is not finite or zero.
    """
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "fV":  # V: bfloat16
        raise WeightError(f"{what}: expected float32 {list(shape)}, found {array.dtype} {list(array.shape)}")
    wide = array.astype(np.float32)
    bad = ~np.isfinite(wide) if zero else ~np.isfinite(wide) | (wide == 0)
    if bad.any():
        at = [int(i) for i in np.argwhere(bad)[0]]
        wanted = "finite values" if zero else "finite values other than zero"
        raise WeightError(
            f"{what}: expected {wanted}, found {wide[bad][0]:g} at {at}; the checkpoint is damaged or training diverged"
        )
    return wide


def check_finite(sums: F64, array: npt.NDArray[Any], name: str) -> None:
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

    Heuristic, calibrated in test_quantizer.py: after T stages a part of U or W takes at most (3^T + 1) / 2 magnitudes,
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
