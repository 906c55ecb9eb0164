"""The joint quantizer: codes of all stages chosen together, scales refit to them.

With T stages an entry of U or W becomes one of the 4^T points ``P(k1 ... kT) = s1 i^k1 + ... + sT i^kT``, where every stage has
one scale for the real and one for the imaginary axis. The published, greedy quantizer chooses k1 first and for good, then k2
for what is left. Here an entry goes to the nearest of all points, and the scales are those that leave the smallest sum of
squares: from several starts, the two steps alternate until nothing changes (Lloyd's algorithm on a codebook with structure).
Format, bits and kernels are those of the greedy quantizer.

Large matrices are fitted on a fixed sample of their rows; then come a few passes over all of them. The greedy quantizer's scales
compete in the last comparison, over the whole matrix, so the result is never worse than greedy's: with the same scales the
nearest point is at most as far away as greedy's. Every entry counts the same, and with a row multiplier what counts is the
matrix after the division.

Numeric profiles: ``bf16-reference`` quantizes the parts of U and W that the published training code sees, each step rounded
to bfloat16, and rounds the fitted scales to bfloat16. Distances and fits are float32 and float64 in both profiles. Results
depend neither on threads nor on the CPU: searching and adding is C (custom_ops/src/quantizer/loops/joint.h, equal bits for every
instruction set), sums are added in one order, and the systems of at most 4 equations are solved here, without LAPACK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32, F64, LatentMatrix, Points, Rows, each, row_blocks
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE, Rounding, floored
from fairy2i_export.codes.strategies.base import Check, Strategy
from fairy2i_export.codes.strategies.greedy import greedy_scales

_SAMPLE = 1 << 17  # complex entries to fit scales on before the whole matrix is looked at
_SAMPLE_ROWS = 256  # spread over as many rows, which differ more than columns of a row do
_CONVERGED = 1e-5  # relative change of the sum of squares that ends a fit
_FIRST_STEPS = 15  # from every start; then the best of them goes on
_MOST_STEPS = 100
_WHOLE_STEPS = 2  # over a matrix that is larger than its sample
Sums = Callable[[F32], F64]  # scales [stages, 2] -> sums of the entries as Points.sums gives them

# Good scales for entries whose parts have the standard deviation 1, [stage][re, im]: the best local optima from some thousand
# random starts on Gaussian and on Laplace entries (benchmarks/quality/joint_starts.py).
STARTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((1.13, 1.13),),),
    2: (((1.22, 0.51), (0.92, 1.44)), ((1.64, 1.14), (0.61, 1.48))),
    3: (
        ((0.91, 1.59), (1.42, 0.27), (0.42, 0.78)),
        ((1.75, 1.64), (1.30, 1.29), (0.62, 0.92)),
    ),
    4: (
        ((1.50, 0.81), (0.99, 1.08), (0.47, 1.34), (0.24, 0.68)),
        ((1.55, 1.62), (1.72, 1.36), (0.48, 1.20), (0.82, 0.73)),
    ),
}


def fit_points(sums_of: Sums, start: F32, steps: int = _MOST_STEPS) -> tuple[F32, float]:
    """Alternate between nearest points and least squares.

    Args:
        sums_of: sums of the entries for the points of given scales, see :meth:`Points.sums`.
        start: scales [stages, 2] to begin with.
        steps: how often ``sums_of`` is called at most.

    Returns:
        The best scales met, and the sum of squares that they leave.
    """
    scales = best = start
    least = np.inf
    for _ in range(steps):
        sums = sums_of(scales)
        error = point_error(sums, scales)
        gain = least - error
        if gain > 0:
            best, least = scales, error
        if not gain > _CONVERGED * error:
            break
        scales = np.abs(least_squares(sums, scales)).astype(np.float32)
    return best, least


def point_error(sums: F64, scales: F32) -> float:
    """The (weighted) sum of squares that the points of ``scales`` leave of the entries of ``sums``, of any scales' points."""
    re, im = _units(len(scales))
    x, y = (np.add.reduce(unit * scales[:, axis].astype(np.float64), axis=1) for axis, unit in enumerate((re, im)))
    return float(np.add.reduce(sums[:, 3] - 2 * (x * sums[:, 1] + y * sums[:, 2]) + (x * x + y * y) * sums[:, 0]))


def joint_scales(matrix: LatentMatrix, rnd: Rounding, pool: Executor | None, greedy: F32) -> F32:
    """Scales float32 [stages, 2 (U, W), 2 (re, im)] for the nearest points; from now on the matrix chooses them.

    Args:
        matrix: the latent weights.
        rnd: rounding of the profile.
        pool: threads to share the work among.
        greedy: the greedy quantizer's scales, which compete.
    """
    sample, complete = _sample(matrix)

    def fit(u_w: int) -> F32:
        re, im = sample[u_w]
        starts = [greedy[:, u_w], *(np.float32(_deviation(re, im)) * np.array(s, np.float32) for s in STARTS[matrix.stages])]
        sums_of: Sums = lambda scales: Points(scales).sums(re, im)  # noqa: E731
        tried = [fit_points(sums_of, start, _FIRST_STEPS) for start in starts]
        return fit_points(sums_of, min(tried, key=lambda found: found[1])[0])[0]

    fitted = list(map(fit, range(2)) if pool is None else pool.map(fit, range(2)))
    matrix.choose_jointly()
    whole = _Whole(matrix, pool)
    scales = np.stack(fitted, axis=1)
    if not complete:
        scales = whole.fitted(scales)
    candidates = [greedy, floored(scales, rnd)]
    errors = np.array([whole.errors(candidate) for candidate in candidates])  # [candidate, U or W]
    return np.stack([candidates[int(errors[:, u_w].argmin())][:, u_w] for u_w in range(2)], axis=1)


class _Whole:
    """Sums over all rows of a matrix for given scales [stages, 2, 2]."""

    def __init__(self, matrix: LatentMatrix, pool: Executor | None) -> None:
        self._matrix, self._pool = matrix, pool
        self._blocks = row_blocks(matrix.n, matrix.m, 1)

    def sums(self, scales: F32) -> F64:
        """[2 (U, W), 4^stages, 4], blocks of rows added in their order."""
        points = [Points(scales[:, u_w]) for u_w in range(2)]

        def block(rows: tuple[int, int]) -> F64:
            parts = self._matrix.parts(rows)
            return np.stack([points[u_w].sums(*parts[u_w]) for u_w in range(2)])

        return np.asarray(np.add.reduce(np.stack(each(block, self._blocks, self._pool)), axis=0))

    def errors(self, scales: F32) -> list[float]:
        """Sums of squares that are left of U and of W."""
        return [point_error(sums, scales[:, u_w]) for u_w, sums in enumerate(self.sums(scales))]

    def fitted(self, scales: F32) -> F32:
        """A few steps of :func:`fit_points` for U and W at once."""
        for _ in range(_WHOLE_STEPS):
            sums = self.sums(scales)
            solved = [np.abs(least_squares(sums[u_w], scales[:, u_w])) for u_w in range(2)]
            scales = np.stack(solved, axis=1).astype(np.float32)
        return scales


def _sample(matrix: LatentMatrix) -> tuple[F32, bool]:
    """Entries [2 (U, W), 2 (re, im), count] of rows at equal distances, and whether these are all entries."""
    if matrix.n * matrix.m <= _SAMPLE:
        return matrix.parts((0, matrix.n)).reshape(2, 2, -1), True
    count = min(matrix.n, _SAMPLE_ROWS)
    step = -(-count * matrix.m // _SAMPLE) | 1  # odd: heads and blocks have even sizes
    rows = [matrix.parts((i * matrix.n // count, i * matrix.n // count + 1))[..., ::step] for i in range(count)]
    return np.concatenate(rows, axis=2).reshape(2, 2, -1), False


def _deviation(re: F32, im: F32) -> float:
    """Root mean square of the parts of entries."""
    one = np.zeros((1, 2), np.float32)
    return float(np.sqrt(np.add.reduce(Points(one).sums(re, im)[:, 3]) / (2 * re.size)))


@cache
def _units(stages: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Real and imaginary parts of i^k for every combination of codes: [4^stages, stages] each."""
    codes = np.array(list(product(range(4), repeat=stages)))
    return CODE_RE[codes].astype(np.float64), CODE_IM[codes].astype(np.float64)


def least_squares(sums: F64, start: npt.NDArray[np.floating]) -> F64:
    """Least-squares scales [stages, 2] for the codes of ``sums`` [4^stages, 3 or more]; ``start`` where they do not tell."""
    scales = np.array(start, np.float64)
    for axis, unit in enumerate(_units(len(scales))):
        # sums over combinations row by row: no BLAS, whose order of additions depends on the CPU
        gram = np.add.reduce(unit[:, :, None] * unit[:, None, :] * sums[:, :1, None], axis=0)
        rest = np.add.reduce(unit * sums[:, axis + 1 : axis + 2], axis=0) - (gram * scales[:, axis]).sum(axis=1)
        scales[:, axis] += _eliminate(gram.tolist(), rest.tolist())
    return scales


def _eliminate(gram: list[list[float]], rest: list[float]) -> list[float]:
    """Solve ``gram x = rest`` (symmetric, positive semidefinite) with x = 0 where a pivot vanishes."""
    size = len(rest)
    tiny = 1e-12 * max(gram[i][i] for i in range(size))
    order: list[int] = []
    for _ in range(size):
        pivot = max((i for i in range(size) if i not in order), key=lambda i: gram[i][i])
        if gram[pivot][pivot] <= tiny:
            break
        order.append(pivot)
        for row in range(size):
            if row not in order:
                factor = gram[row][pivot] / gram[pivot][pivot]
                rest[row] -= factor * rest[pivot]
                gram[row] = [a - factor * b for a, b in zip(gram[row], gram[pivot], strict=True)]
    x = [0.0] * size
    for i in reversed(order):
        x[i] = (rest[i] - sum(gram[i][j] * x[j] for j in order if j != i and x[j])) / gram[i][i]
    return x


def _scales(
    matrix: LatentMatrix, rnd: Rounding, pool: Executor | None, check: Check, blocks: Sequence[Rows] | None = None
) -> F32:
    greedy = greedy_scales(matrix, rnd, pool, check, blocks)
    # where a weight is not finite, and the check lets that pass, there are no nearest points
    return joint_scales(matrix, rnd, pool, greedy) if np.isfinite(greedy).all() else greedy


JOINT = Strategy(
    "joint",
    "codes of all stages chosen together, a smaller error",
    _scales,
    jointly=True,
    stagewise=False,
    searches=True,
    in_torch="given",
)
