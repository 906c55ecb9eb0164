"""One matrix: codes, scales and row multipliers that keep its outputs, from its weights and the metric of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.compile.calibrate.matrix.annealing import anneal, error_of_rows, temperatures
from fairy2i_export.compile.calibrate.matrix.coupling import Coupling, anneal_together, fit_together
from fairy2i_export.compile.calibrate.matrix.feedback import Candidate, feed_back
from fairy2i_export.compile.calibrate.matrix.fit import loss, refit_rows, refit_scales, start
from fairy2i_export.compile.calibrate.matrix.metric import Metric
from fairy2i_export.errors import WeightError

ROUNDS = 2  # of feedback, each followed by fitting scales and rows to its codes
LEGS = 3  # of annealing, each followed by the same; then there are as many sweeps without noise as this:
COLD_SWEEPS = 2
# Of all these fits the last ones: codes then can follow. Before, U and W find apart where that serves, which a grid would hinder.
_ON_GRID = 4
_LARGEST = 1e33  # of squares of outputs, mean over tokens and summed over outputs: what is computed from them has room above


@dataclass(frozen=True)
class Calibrated:
    """What calibration made of a matrix.

    Attributes:
        linear: codes, scales and row multipliers.
        error: root of the relative squared error of its outputs on the calibration text, against what was aimed at; outputs
            with a metric of their own are weighted by its diagonal.
    """

    linear: QuantizedLinear
    error: float


def calibrate_matrix(
    aim: Any, metric: Metric, stages: int, sweeps: int, name: str = "a layer", coupling: Coupling | None = None
) -> Calibrated:
    """Quantize one matrix.

    Args:
        aim: torch float32 [2n, 2m]: the matrix to come near to.
        metric: of its inputs.
        stages: 1 to 4.
        sweeps: of annealing; 0 leaves the codes of feedback.
        name: for messages.
        coupling: of its outputs, which annealing counts; None: they are worth the same and have nothing to do with each other.

    Raises:
        WeightError: outputs whose squares are too large for float32, or not finite.
    """
    import torch

    columns = torch.from_numpy(metric.columns)
    target = (aim if coupling is None else coupling.scaled(aim)).T[columns].contiguous()
    wanted = metric.hessian @ target
    power = float((wanted * target).sum())
    if not power < _LARGEST:
        raise WeightError(
            f"{name}: expected weights whose outputs on the calibration text can be squared and summed in float32 (up to "
            f"{_LARGEST:.0e}), found {power:.3g}; the checkpoint is damaged or overflows in float32"
        )
    candidate = start(target, metric, stages)
    grid = fits(sweeps) - _ON_GRID
    for index in range(ROUNDS):
        feed_back(target, metric, candidate)
        found = _fit(target, wanted, metric, candidate, index >= grid)
    legs = _legs(error_of_rows(target, wanted - found, candidate), sweeps) if sweeps else []
    for index, heat in enumerate(legs, ROUNDS):
        if coupling is None:
            anneal(wanted - found, metric, candidate, heat, seed=index)
            found = _fit(target, wanted, metric, candidate, index >= grid)
        else:
            anneal_together(wanted - found, coupling, metric, candidate, heat, seed=index)
            found = fit_together(target, wanted, coupling, metric, candidate, index >= grid)
    error = loss(target, metric, candidate) ** 0.5
    if coupling is not None:
        coupling.restore(candidate)
    m = len(metric.columns) // 2
    codes = np.empty((stages, 2, candidate.codes.shape[3], m), np.uint8)
    codes[..., metric.columns[0::2]] = candidate.codes.transpose(0, 1, 3, 2)
    return Calibrated(QuantizedLinear(codes, candidate.scales, "fp32", candidate.rows), error)


def fits(sweeps: int) -> int:
    """How often scales and row multipliers are fitted, with so many sweeps of annealing."""
    return ROUNDS + (LEGS + COLD_SWEEPS if sweeps else 0)


def _fit(target: Any, wanted: Any, metric: Metric, candidate: Candidate, is_grid: bool) -> Any:
    """Fit scales, then rows; gives the product of the metric and the result, as ``wanted`` is that of the metric and the target."""
    refit_scales(target, metric, candidate, is_grid)
    return refit_rows(wanted, metric, candidate)


def _legs(errors: F32, sweeps: int) -> list[F32]:
    """The heat [sweeps, n] of every leg and of the sweeps after them, from the errors [n] of rows."""
    warm = np.array_split(temperatures(sweeps)[:, None] * errors, LEGS)
    return [*warm, *([np.zeros((1, len(errors)), np.float32)] * COLD_SWEEPS)]
