"""Annealing as a whole: what it leaves of the error, beside sweeps without noise and other scales, and the same codes each time.

Single sweeps and their noise: test_search.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # after the check

from fairy2i_export.codes.layout import pack
from fairy2i_export.codes.strategies.joint import STARTS
from fairy2i_export.compile.calibrate.matrix import calibrate, fit
from fairy2i_export.compile.calibrate.matrix.annealing import COLD, HOT, temperatures
from fairy2i_export.compile.calibrate.matrix.calibrate import Calibrated, calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.metric import Statistics
from fairy2i_runtime import core


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


def lost_in_lut(made: Calibrated) -> float:
    """Relative error of outputs that are computed with 8-bit tables, on Gaussian activations."""
    matrix, packed = made.linear.dequantize("none"), pack(made.linear)
    inputs = np.random.default_rng(1).standard_normal((64, matrix.shape[1])).astype(np.float32)
    layer = core.Linear(
        packed.packed, packed.scales, matrix.shape[1], len(matrix), row_multiplier=packed.row_multiplier, kernel="lut"
    )
    exact = inputs.astype(np.float64) @ matrix.astype(np.float64).T
    return float(np.linalg.norm(layer(inputs) - exact) / np.linalg.norm(exact))


def test_four_stages_start_with_scales_that_lut_rounds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hardly cost error, beside those with which the joint quantizer begins."""
    ours = made(4, 24)
    monkeypatch.setitem(fit.SCALES, 4, STARTS[4][0])
    others = made(4, 24)
    assert lost_in_lut(ours) < 0.92 * lost_in_lut(others)  # found: 0.86
    assert ours.error < 1.03 * others.error
