"""The search for codes in a metric, against all combinations tried by numpy in float64, and against its own promises.

Arguments, ISAs and values that are not finite: custom_ops/tests/test_search.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.search import Search
from fairy2i_export.errors import FormatError

F32, F64 = npt.NDArray[np.float32], npt.NDArray[np.float64]


@dataclass
class Problem:
    """A matrix to be searched; arrays as :class:`Search` has them, ``target`` [2m, 2n] what to come near to."""

    hessian: F32
    factor: F32
    scales: F32
    rows: F32
    columns: F32
    codes: npt.NDArray[np.uint8]
    dense: F32
    target: F32

    def search(self, metric: F32) -> Search:
        return Search(metric, self.scales, self.rows, self.columns, self.codes, self.dense)

    def copy(self) -> Problem:
        return Problem(**{name: array.copy() for name, array in vars(self).items()})

    def feed_back(self, pairs: tuple[int, int] | None = None, rows: tuple[int, int] | None = None) -> F32:
        """All of it, or a part; gives values."""
        values = self.target.copy()
        self.search(self.factor).feed_back(pairs or (0, self.codes.shape[2]), rows or (0, self.codes.shape[3]), values)
        return values

    def pull(self, padding: int = 3) -> F32:
        """H times what is missing, by rows, as :meth:`Search.anneal` wants it."""
        pull = np.zeros((self.dense.shape[1], len(self.dense) + padding), np.float32)
        pull[:, : len(self.dense)] = (self.target - self.dense).T @ self.hessian
        return pull

    def anneal(self, sweeps: int = 1, rows: tuple[int, int] | None = None, noise: F32 | None = None, seed: int = 0) -> F32:
        """All rows, or some; gives what pull becomes."""
        pull = self.pull()
        self.search(self.hessian).anneal(sweeps, rows or (0, self.codes.shape[3]), pull, noise, seed)
        return pull

    def loss(self) -> float:
        error = self.target.astype(np.float64) - self.dense
        return float((error * (self.hessian.astype(np.float64) @ error)).sum())

    def dequantized(self) -> F32:
        """What the product makes of the codes, in this order: [2m, 2n]."""
        m = self.codes.shape[2]
        columns = np.concatenate([self.columns[0::2], self.columns[1::2]])
        codes = np.ascontiguousarray(self.codes.transpose(0, 1, 3, 2))
        dense = QuantizedLinear(codes, self.scales, "fp32", self.rows, columns).dequantize("none")
        return np.ascontiguousarray(dense.T.reshape(2, m, -1).swapaxes(0, 1).reshape(2 * m, -1))


def make(m: int, n: int, stages: int, seed: int = 0) -> Problem:
    """Inputs that are correlated, multipliers that differ between all rows and columns."""
    rng = np.random.default_rng([seed, stages])
    inputs = rng.standard_normal((4 * m + 9, 2 * m)) @ rng.standard_normal((2 * m, 2 * m)) * rng.uniform(0.3, 2, 2 * m)
    hessian = inputs.T @ inputs / len(inputs) + 0.05 * np.eye(2 * m)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    scales = 0.9 * 0.5 ** np.arange(stages)[:, None, None] * rng.uniform(0.8, 1.2, (stages, 2, 2))
    rows, columns = rng.uniform(0.3, 2, 2 * n), rng.uniform(0.5, 1.5, 2 * m)
    target = rng.standard_normal((2 * m, 2 * n)) * rows * columns[:, None]
    arrays = [np.ascontiguousarray(x, np.float32) for x in (hessian, factor, scales, rows, columns)]
    codes = rng.integers(0, 4, (stages, 2, m, n)).astype(np.uint8)
    problem = Problem(*arrays, codes, np.zeros((2 * m, 2 * n), np.float32), target.astype(np.float32))
    problem.dense[:] = problem.dequantized()
    return problem


def combinations(problem: Problem) -> F64:
    """What all codes of one entry of U and of W stand for, without multipliers: [combinations, 2 (upper, lower), 2 columns]."""
    stages = len(problem.scales)
    codes = np.array(list(product(range(4), repeat=2 * stages)), np.uint8).T.reshape(stages, 2, -1, 1)
    dense = QuantizedLinear(codes, problem.scales, "fp32", None, None).dequantize("none").astype(np.float64)
    return dense.reshape(2, -1, 2).swapaxes(0, 1)


def costs(problem: Problem, pair: int, wanted: F64, form: F64, everything: F64) -> tuple[F64, F64]:
    """Of what was found, and the least of all combinations, for every complex row.

    Args:
        problem: after the search.
        pair: the pair.
        wanted: [2 columns, 2n].
        form: [2, 2]; the cost is ``d form d^T`` of the differences d of both real rows.
        everything: of :func:`combinations`.
    """

    def cost(differences: F64) -> F64:  # [..., 2 (upper, lower), 2 columns]
        return np.einsum("...ha,ab,...hb->...", differences, form, differences)

    n = problem.codes.shape[3]
    target = wanted.reshape(2, 2, n).transpose(2, 1, 0)
    found = problem.dense[2 * pair : 2 * pair + 2].astype(np.float64).reshape(2, 2, n).transpose(2, 1, 0)
    units = problem.rows.reshape(2, n).T[:, :, None].astype(np.float64) * problem.columns[2 * pair : 2 * pair + 2]
    least = np.array([cost(target[i] - everything * units[i]).min() for i in range(n)])
    return cost(target - found), least


def costs_of_feedback(problem: Problem, values: F64) -> tuple[F64, F64]:
    """Of all pairs, in the state that the codes of earlier pairs have led to; and checks what values became."""
    work, everything = problem.target.astype(np.float64), combinations(problem)
    factor = problem.factor.astype(np.float64)
    found = []
    for pair in range(problem.codes.shape[2]):
        part = slice(2 * pair, 2 * pair + 2)
        inverse = np.linalg.inv(factor[part, part])
        found.append(costs(problem, pair, work[part], inverse @ inverse.T, everything))
        error = ((work[part] - problem.dense[part]).T @ inverse).T
        np.testing.assert_allclose(values[part], error, rtol=1e-3, atol=1e-4 * float(np.abs(error).max()))
        work[part.stop :] -= factor[part, part.stop :].T @ error
    return tuple(np.array(found).swapaxes(0, 1))  # type: ignore[return-value]


def costs_of_sweep(before: Problem, after: Problem, pull: F32) -> tuple[F64, F64, F64]:
    """Of all pairs: what was found, the least of all combinations, what was there; and checks what pull became."""
    np.testing.assert_allclose(pull, after.pull(), atol=1e-5 * float(np.abs(before.pull()).max()))
    hessian, everything = after.hessian.astype(np.float64), combinations(after)
    state, found = before.dense.astype(np.float64), []
    for pair in range(after.codes.shape[2]):
        part = slice(2 * pair, 2 * pair + 2)
        block = hessian[part, part]
        wanted = state[part] + np.linalg.solve(block, hessian[part] @ (after.target - state))
        old, _ = costs(before, pair, wanted, block, everything[:1])
        found.append((*costs(after, pair, wanted, block, everything), old))
        state[part] = after.dense[part]
    return tuple(np.array(found).swapaxes(0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize(("stages", "m", "n"), [(1, 9, 70), (2, 9, 70), (3, 4, 33), (4, 2, 6)])
def test_feedback_finds_the_best_of_all_combinations(stages: int, m: int, n: int) -> None:
    """Always with one and two stages; with more nearly so: U and W take turns."""
    problem = make(m, n, stages)
    found, least = costs_of_feedback(problem, problem.feed_back().astype(np.float64))
    assert (found >= least * (1 - 1e-4) - 1e-6).all()
    if stages <= 2:
        assert (found <= least * (1 + 1e-4) + 1e-6).all()
    else:
        assert found.sum() < TURNS[stages] * least.sum()


# what is found in turns, as a multiple of the least cost: 1.0 to 1.16 in feedback, and in sweeps, which take fewer turns, 1.22
TURNS = {3: 1.25, 4: 1.25}


@pytest.mark.parametrize(("stages", "m", "n"), [(1, 9, 70), (2, 9, 70), (3, 4, 33), (4, 2, 6)])
def test_a_sweep_finds_the_best_of_all_combinations(stages: int, m: int, n: int) -> None:
    """From codes of feedback, and with two stages from any; never worse than what was there."""
    for first in ("any", "fed back"):
        problem = make(m, n, stages, seed=1)
        if first == "fed back":
            problem.feed_back()
        before = problem.copy()
        found, least, old = costs_of_sweep(before, problem, problem.anneal())
        assert (found >= least * (1 - 1e-4) - 1e-6).all()
        assert (found <= old * (1 + 1e-4) + 1e-6).all()
        if stages <= 2:
            assert (found <= least * (1 + 1e-4) + 1e-6).all()
        elif first == "fed back":
            assert found.sum() < TURNS[stages] * least.sum()


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_sweeps_lower_the_error_of_outputs(stages: int) -> None:
    """Each of them, and several in one call are the same as one after the other, but for rounding of what is missing."""
    problem = make(24, 40, stages, seed=2)
    problem.feed_back()
    at_once = problem.copy()
    losses = [problem.loss()]
    for _ in range(4):
        problem.anneal()
        losses.append(problem.loss())
        assert losses[-1] <= losses[-2] * (1 + 1e-5)
    assert losses[-1] < 0.97 * losses[0]
    at_once.anneal(4)
    assert at_once.loss() == pytest.approx(losses[-1], rel=1e-3)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_noise_leads_to_better_codes(stages: int) -> None:
    """Falling noise and as many sweeps without; noise is what fairy2i.h says of it: zero is none, and a seed has its own."""
    problem = make(24, 40, stages, seed=6)
    problem.feed_back()
    quiet, none, other = problem.copy(), problem.copy(), problem.copy()
    width = np.sqrt(1.5 * 0.04 * problem.loss() / 40 / 24)
    noise = np.repeat(np.geomspace(width, width / 2, 60, dtype=np.float32)[:, None], 40, axis=1)
    quiet.anneal(62)
    none.anneal(62, noise=np.zeros((62, 40), np.float32))
    assert np.array_equal(quiet.codes, none.codes)
    for made, seed in ((problem, 1), (other, 2)):
        made.anneal(60, noise=noise, seed=seed)
        made.anneal(2)
        assert made.loss() < 0.95 * quiet.loss()  # found: 0.79 to 0.91
    assert not np.array_equal(problem.codes, other.codes)


def test_noise_is_even_and_as_wide_as_it_is_said() -> None:
    """Many rows alike, one pair: how often each of its combinations is found, against numpy's own even noise on the target."""
    n, width = 200_000, 1.5
    hessian = np.diag([2.0, 0.5]).astype(np.float32)
    ones = np.ones(2 * n, np.float32)
    scales, codes = np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 1, n), np.uint8)
    problem = Problem(
        hessian, hessian, scales, ones, ones[:2], codes, np.zeros((2, 2 * n), np.float32), np.zeros((2, 2 * n), np.float32)
    )
    problem.dense[:] = problem.dequantized()
    problem.target[:] = np.repeat(np.array([[0.9, 0.2], [-0.3, 0.4]], np.float32), n, axis=1)  # [columns, (upper, lower)]
    problem.anneal(1, noise=np.full((1, n), width, np.float32), seed=3)
    found = np.bincount(4 * problem.codes[0, 0, 0] + problem.codes[0, 1, 0], minlength=16) / n
    everything, diagonal = combinations(problem), np.diag(hessian).astype(np.float64)
    noise = np.random.default_rng(0).uniform(-width, width, (n, 2, 2)) / np.sqrt(diagonal)  # [rows, (upper, lower), columns]
    wanted = problem.target.reshape(2, 2, n).transpose(2, 1, 0) + noise
    least = ((wanted[:, None] - everything) ** 2 * diagonal).sum((2, 3)).argmin(1)
    expected = np.bincount(least, minlength=16) / n
    assert (expected > 0.002).sum() > 6  # the noise reaches many
    assert (np.abs(found - expected) < 5 * np.sqrt(2 * expected * (1 - expected) / n) + 1 / n).all()


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_dense_is_what_codes_stand_for(stages: int) -> None:
    problem = make(7, 37, stages, seed=3)
    for step in (problem.feed_back, problem.anneal):
        step()
        np.testing.assert_allclose(problem.dense, problem.dequantized(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_rows_are_independent(stages: int) -> None:
    """To the bit, however they are split; what lies outside the part stays as it was."""
    whole, parts = make(6, 71, stages, seed=4), make(6, 71, stages, seed=4)
    values = whole.feed_back()
    found = parts.target.copy()
    cuts = ((40, 71), (0, 1), (1, 40))
    for begin, end in cuts:
        untouched = parts.codes[..., :begin].copy(), parts.codes[..., end:].copy()
        parts.search(parts.factor).feed_back((0, 6), (begin, end), found)
        assert np.array_equal(untouched[0], parts.codes[..., :begin])
        assert np.array_equal(untouched[1], parts.codes[..., end:])
    for one, other in ((values, found), (whole.codes, parts.codes), (whole.dense, parts.dense)):
        assert np.array_equal(one, other)
    noise = np.random.default_rng(7).uniform(0, 0.5, (3, 71)).astype(np.float32)
    pull = parts.pull()
    for begin, end in cuts:
        parts.search(parts.hessian).anneal(3, (begin, end), pull, noise, seed=9)
    assert np.array_equal(whole.anneal(3, noise=noise, seed=9), pull)
    for one, other in ((whole.codes, parts.codes), (whole.dense, parts.dense)):
        assert np.array_equal(one, other)


def test_threads_of_torch_hardly_matter() -> None:
    """They split rows and sums of matrix products, over blocks of pairs; and blocks are the same as one search of everything."""
    torch = pytest.importorskip("torch")
    from fairy2i_export.compile.calibrate.matrix.annealing import anneal
    from fairy2i_export.compile.calibrate.matrix.feedback import Candidate, feed_back
    from fairy2i_export.compile.calibrate.matrix.metric import Metric

    made, threads = [], torch.get_num_threads()
    noise = np.random.default_rng(7).uniform(0, 0.5, (2, 50)).astype(np.float32)
    for count in (1, 3):
        problem = make(70, 50, 2, seed=5)
        metric = Metric(np.arange(140), torch.from_numpy(problem.hessian), torch.from_numpy(problem.factor))
        candidate = Candidate(problem.scales, problem.rows, problem.columns, problem.codes, problem.dense)
        torch.set_num_threads(count)
        try:
            feed_back(torch.from_numpy(problem.target), metric, candidate)
            pull = metric.hessian @ torch.from_numpy(problem.target - problem.dense)
            anneal(pull, metric, candidate, noise**2 / 1.5, seed=3)
        finally:
            torch.set_num_threads(threads)
        np.testing.assert_allclose(problem.dense, problem.dequantized(), rtol=1e-5, atol=1e-6)
        made.append(problem)
    made.append(make(70, 50, 2, seed=5))
    made[-1].feed_back()
    made[-1].anneal(2, noise=noise, seed=3)
    for other in made[1:]:
        assert np.mean(made[0].codes != other.codes) < 0.02
        assert other.loss() == pytest.approx(made[0].loss(), rel=0.01)


BAD: list[tuple[Callable[[Problem], Any], str]] = [
    (lambda p: p.feed_back(pairs=(0, 4)), "part: expected pairs of 0 to 3, got 0 to 4"),
    (lambda p: p.feed_back(rows=(2, 1)), "part: expected rows of 0 to 5, got 2 to 1"),
    (lambda p: setattr(p, "target", p.target[:-1]), "values: expected 60 values, got 50"),
    (lambda p: setattr(p, "scales", p.scales[:1].copy()), "scales: expected 8 values, got 4"),
    (lambda p: setattr(p, "rows", p.rows[:-1].copy()), "rows: expected 10 values, got 9"),
    (lambda p: setattr(p, "factor", p.factor[:-1].copy()), "metric: expected 36 values, got 30"),
    (lambda p: setattr(p, "dense", p.dense[:-1].copy()), "dense: expected 60 values, got 50"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_shapes_are_refused(spoil: Callable[[Problem], Any], message: str) -> None:
    problem = make(3, 5, 2)

    def run() -> None:
        spoil(problem)
        problem.feed_back()

    with pytest.raises(FormatError, match=message):
        run()
