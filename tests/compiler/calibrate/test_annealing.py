"""Annealing as a whole: what it leaves of the error, beside sweeps without noise, and that it gives the same codes each time.

Single sweeps and their noise: test_search.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # after the check

from fairy2i_export.compile.calibrate.matrix import calibrate
from fairy2i_export.compile.calibrate.matrix.annealing import COLD, HOT, temperatures
from fairy2i_export.compile.calibrate.matrix.calibrate import Calibrated, calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.metric import Statistics


def problem(rows: int = 96, columns: int = 64) -> tuple[Any, Statistics]:
    """A matrix, and what 1,000 correlated inputs say."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1000, columns)) @ rng.standard_normal((columns, columns)) * rng.uniform(0.3, 2, columns)
    statistics = Statistics(columns)
    for half in range(2):
        statistics.add(torch.from_numpy(inputs[half::2].astype(np.float32)), half)
    return torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32)), statistics


def made(stages: int, sweeps: int) -> Calibrated:
    weight, statistics = problem()
    return calibrate_matrix(weight, statistics.metric("a layer"), stages, sweeps)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_annealing_leaves_less_error_than_as_many_quiet_sweeps(stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And than feedback alone."""
    annealed, fed_back = made(stages, 32).error, made(stages, 0).error
    monkeypatch.setattr(calibrate, "temperatures", lambda sweeps: np.zeros(sweeps, np.float32))
    quiet = made(stages, 32).error
    assert annealed**2 < 0.98 * quiet**2  # found: 0.9 to 0.97
    assert annealed < fed_back


def test_more_sweeps_leave_less() -> None:
    errors = [made(2, sweeps).error for sweeps in (1, 16, 128)]
    assert errors[0] > errors[1] > errors[2]


def test_the_same_codes_each_time() -> None:
    one, other = made(3, 16).linear, made(3, 16).linear
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.scales, other.scales)


def test_temperatures_fall_evenly() -> None:
    found = temperatures(5)
    np.testing.assert_allclose(found[[0, -1]], [HOT, COLD], rtol=1e-6)
    np.testing.assert_allclose(found[1:] / found[:-1], (COLD / HOT) ** 0.25, rtol=1e-5)
    assert temperatures(1).tolist() == pytest.approx([HOT])
