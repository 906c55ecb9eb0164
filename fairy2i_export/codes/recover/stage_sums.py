"""Find the codes and scales of a matrix that already is a sum of Fairy2i stages.

Quantizing a dequantized matrix again does not give its codes back: the greedy quantizer takes mean magnitudes as scales, and
the means over a few discrete values are not the scales those values were made of (the matrix changes by some 7 %). But such a
matrix holds its scales in plain sight. The real part of every entry of U is a sum of some of the scales, each with a sign, so
it takes at most (3^T + 1) / 2 magnitudes, the scales themselves among them. ``recover`` reads the magnitudes off, looks for T
of them that explain all others, assigns every entry its codes, and accepts the result only if it reproduces the matrix. What it
finds out (:class:`StageSums`) is small, and the codes can be read off again with it without any search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import MAX_STAGES, Profile
from fairy2i_export.codes.native import F32, F64, U8
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE, round_to_bf16
from fairy2i_export.codes.quantized import QuantizedLinear, split_widely_linear

_SAMPLE = 1 << 16  # entries whose magnitudes are read off
_FIRST_LOOK = 1 << 12  # entries that tell latent weights from sums of stages
_CANDIDATES = 8  # sets of scales tried per part
_SEARCHED = 1_500  # sets of magnitudes that may have to be looked at


@dataclass(frozen=True)
class StageSums:
    """What is known about a matrix that is a sum of stages, all but its codes.

    Attributes:
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        profile: in which the matrix is reproduced.
        magnitudes: float64 [stages, 2 (re, im)] for U and for W: those that every entry was explained with.
        tolerance: by how much entries may be off.
        rows: float64 [2n], factors that the rows were divided by, or None.
    """

    scales: F32
    profile: Profile
    magnitudes: tuple[F64, F64]
    tolerance: float
    rows: F64 | None = None

    @property
    def stages(self) -> int:
        return len(self.scales)

    def read(self, a: F32) -> QuantizedLinear | None:
        """The codes of the matrix; None if it is another one."""
        even = a if self.rows is None else (a.astype(np.float64) / self.rows[:, None]).astype(np.float32)
        u_re, u_im, w_re, w_im = split_widely_linear(even)
        codes = []
        for re, im, magnitudes in ((u_re, u_im, self.magnitudes[0]), (w_re, w_im, self.magnitudes[1])):
            found = _assign(re, im, magnitudes, 4 * self.tolerance)
            if found is None:
                return None
            codes.append(found)
        rows = None if self.rows is None else self.rows.astype(np.float32)
        return QuantizedLinear(np.stack(codes, axis=1), self.scales, self.profile, rows)


def recover(a: F32) -> QuantizedLinear | None:
    """Codes and scales of a dequantized matrix, None if it is not (recognizably) a sum of 1 to 4 stages.

    Args:
        a: real matrix [2n, 2m], finite; values may have been rounded to float16 or bfloat16 after dequantization.

    Returns:
        A quantized layer without multipliers whose ``dequantize`` gives ``a`` up to the rounding of its number format, with
        the fewest stages that do. Stages are ordered by falling scales, as the quantizer makes them.
    """
    found = explain(a)
    return None if found is None else found[0]


def explain(a: F32) -> tuple[QuantizedLinear, StageSums] | None:
    """As :func:`recover`, and what it takes to read the codes off again."""
    if a.ndim != 2 or 0 in a.shape or a.shape[0] % 2 or a.shape[1] % 2 or not a.any():
        return None  # of a matrix of zeros no scale can be read off; the quantizer has a rule for it
    u_re, u_im, w_re, w_im = split_widely_linear(a)
    pairs = ((u_re, u_im), (w_re, w_im))
    top = float(np.abs(a).max())
    read = [(step * top, _all_levels(pairs, step * top)) for step in _rounding_steps(a)]
    for stages in range(1, MAX_STAGES + 1):
        if 4**stages > 4 * u_re.size:  # fewer entries than choices: anything would fit
            return None
        for tolerance, levels in read:
            if levels is None or max(each.size for each in levels) > (3**stages + 1) // 2:
                continue
            u = _one_matrix(pairs[0], (levels[0], levels[1]), stages, tolerance)
            w = None if u is None else _one_matrix(pairs[1], (levels[2], levels[3]), stages, tolerance)
            if u is not None and w is not None:
                codes = np.stack([u[0], w[0]], axis=1)
                q, error = _best(a, codes, np.stack([_fitted(*pairs[0], *u), _fitted(*pairs[1], *w)], axis=1))
                if error <= 2 * tolerance:
                    return q, StageSums(q.scales, q.profile, (u[1], w[1]), tolerance)
    return None


def _all_levels(pairs: tuple[tuple[F32, F32], tuple[F32, F32]], tolerance: float) -> list[F64] | None:
    """The magnitudes of U_re, U_im, W_re and W_im; None, and that quickly, if one of them has too many."""
    levels: list[F64] = []
    for size in (_FIRST_LOOK, _SAMPLE):
        found = [_levels(part.reshape(-1)[:size], tolerance) for pair in pairs for part in pair]
        levels = [each for each in found if each is not None]
        if len(levels) != 4:
            return None
    return levels


def _best(a: F32, codes: U8, scales: F32) -> tuple[QuantizedLinear, float]:
    """The fitted scales, or the bfloat16 numbers next to them if those explain the matrix as well: then they were such.

    With them comes the largest difference of an entry.
    """
    fitted = QuantizedLinear(codes, scales, profile="fp32")
    rounded = QuantizedLinear(codes, round_to_bf16(scales), profile="bf16-reference")
    error_rounded = float(np.abs(rounded.dequantize("none") - a).max())
    if np.array_equal(rounded.dequantize("profile"), a):
        return rounded, error_rounded
    error = float(np.abs(fitted.dequantize("none") - a).max())
    as_good = error_rounded <= error + 2.0**-22 * float(np.abs(a).max())
    return (rounded, error_rounded) if as_good else (fitted, error)


def _rounding_steps(a: F32) -> list[float]:
    """Relative distances by which entries may be off: that of float32 sums first, then that of a 16-bit format that fits."""
    steps = [2.0**-20]
    if np.array_equal(round_to_bf16(a), a):
        return [*steps, 2.0**-8]
    with np.errstate(over="ignore"):
        if np.array_equal(a.astype(np.float16).astype(np.float32), a):
            return [*steps, 2.0**-10]
    return steps


def _levels(values: F32, tolerance: float) -> F64 | None:
    """The distinct magnitudes among ``values``, ascending; None if there are too many or they do not fall into groups."""
    magnitudes = np.sort(np.abs(values)).astype(np.float64)
    starts = np.flatnonzero(np.diff(magnitudes, prepend=-np.inf) > tolerance)
    if starts.size > (3**MAX_STAGES + 1) // 2:
        return None
    ends = np.append(starts[1:], magnitudes.size)
    if (magnitudes[ends - 1] - magnitudes[starts]).max() > 4 * tolerance:
        return None
    found = np.add.reduceat(magnitudes, starts) / (ends - starts)
    found[found <= 2 * tolerance] = 0
    return found


def _one_matrix(parts: tuple[F32, F32], levels: tuple[F64, F64], stages: int, tolerance: float) -> tuple[U8, F64] | None:
    """Codes [stages, n, m] of U or W and the scales [stages, 2] that explain every entry; None if no choice of them does."""
    re, im = parts
    imaginary = list(_scale_sets(levels[1], stages, tolerance))
    for s_re in _scale_sets(levels[0], stages, tolerance):
        for s_im in imaginary:
            for order in permutations(range(stages)):  # which imaginary scale belongs to which real one
                scales = np.stack([s_re, s_im[list(order)]], axis=1)
                small = slice(0, _FIRST_LOOK)
                if _assign(re.reshape(-1)[small], im.reshape(-1)[small], scales, 4 * tolerance) is None:
                    continue
                codes = _assign(re, im, scales, 4 * tolerance)
                if codes is not None:
                    return codes, scales
    return None


def _scale_sets(levels: F64, stages: int, tolerance: float) -> Iterator[F64]:
    """Sets of ``stages`` magnitudes, descending, whose signed partial sums include all ``levels``; a few at most."""
    nonzero = levels[levels > 0]
    if nonzero.size == 0:
        yield np.zeros(stages)
        return
    sets = np.array(list(combinations_with_replacement(nonzero[::-1], stages)))
    total = sets.sum(axis=1)
    reach = 4 * tolerance
    # where all stages agree the sum of all scales is the largest level: by far the likeliest sets come first
    likely = np.flatnonzero(np.abs(total - nonzero[-1]) <= reach * stages)
    others = np.flatnonzero(total > nonzero[-1] + reach * stages)
    signs = np.array(list(product((-1, 0, 1), repeat=stages)), np.float64)
    yielded = 0
    for index in np.concatenate([likely, others])[:_SEARCHED]:
        sums = np.sort(np.abs(signs @ sets[index]))
        at = np.clip(np.searchsorted(sums, nonzero), 1, sums.size - 1)
        nearest = np.minimum(np.abs(sums[at] - nonzero), np.abs(sums[at - 1] - nonzero))
        if nearest.max() <= reach:
            yield sets[index]
            yielded += 1
            if yielded == _CANDIDATES:
                return


def _assign(re: F32, im: F32, scales: F64, reach: float) -> U8 | None:
    """Codes [stages, ...] of the points nearest to the entries, None if one entry is further than ``reach`` from them all."""
    stages = scales.shape[0]
    choices = np.array(list(product(range(4), repeat=stages)), np.uint8)  # [4^stages, stages]
    point_re = (CODE_RE[choices] * scales[:, 0]).sum(axis=1)
    point_im = (CODE_IM[choices] * scales[:, 1]).sum(axis=1)
    # sums of the same scales in another order are one grid value; where a matrix is all zeros, so are its scales
    fine = max(float(scales.max()) * 1e-9, float(np.finfo(np.float64).tiny))
    grid_re, at_re = np.unique(np.round(point_re / fine), return_inverse=True)
    grid_im, at_im = np.unique(np.round(point_im / fine), return_inverse=True)
    grid_re, grid_im = grid_re * fine, grid_im * fine
    table = np.full((grid_re.size, grid_im.size), -1, np.int16)
    table[at_re[::-1], at_im[::-1]] = np.arange(len(choices), dtype=np.int16)[::-1]
    codes = np.empty((stages, *re.shape), np.uint8)
    flat, flat_re, flat_im = codes.reshape(stages, -1), re.reshape(-1), im.reshape(-1)
    for start in range(0, flat_re.size, _SAMPLE):
        piece = slice(start, start + _SAMPLE)
        i, off_re = _nearest(grid_re, flat_re[piece])
        j, off_im = _nearest(grid_im, flat_im[piece])
        chosen = table[i, j]
        if max(off_re, off_im) > reach or (chosen < 0).any():
            return None
        flat[:, piece] = choices[chosen].T
    return codes


def _nearest(grid: F64, values: F32) -> tuple[npt.NDArray[np.intp], float]:
    """Index of the nearest grid value for every value, and the largest distance."""
    index = np.searchsorted((grid[1:] + grid[:-1]) / 2, values)
    return index, float(np.abs(grid[index] - values).max())


def _fitted(re: F32, im: F32, codes: U8, start: F64) -> F32:
    """Least-squares scales [stages, 2] for given codes; a scale that no entry uses stays as it is."""
    stages = codes.shape[0]
    scales = start.copy()
    flat = codes.reshape(stages, -1)[:, :_SAMPLE]
    for axis, (unit, part) in enumerate(((CODE_RE, re), (CODE_IM, im))):
        columns = unit[flat].astype(np.float64)  # [stages, entries]
        used = np.flatnonzero(np.abs(columns).sum(axis=1))
        target = part.reshape(-1)[:_SAMPLE].astype(np.float64)
        fit = np.linalg.lstsq(columns[used] @ columns[used].T, columns[used] @ target, rcond=None)[0]
        scales[used, axis] = fit
    return scales.astype(np.float32)
