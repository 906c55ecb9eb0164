"""The second search for codes in the metric of a layer's inputs: annealing, sweeps of coordinate descent at a falling temperature.

A sweep goes through the pairs of columns and gives each the codes that bring the outputs nearest while all others stay. So it
lowers ``tr(E H E^T)`` itself, which feedback (feedback.py) only lowers in passing, as it never changes a pair again; but a few
sweeps end where no single pair can do better. With noise that is strong in the first sweeps and weak in the last, codes get out of
such places (simulated annealing, Kirkpatrick et al., Science 220, 1983): a pair gets the codes that would be best if what is
missing were a little else. The inner loop is C (:class:`fairy2i_export.codes.search.Search`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32
from fairy2i_export.compile.calibrate.matrix.feedback import Candidate, Threads
from fairy2i_export.compile.calibrate.matrix.metric import Metric

# Temperature of the first and of the last sweep with noise, in units of the error that feedback left to a pair of a complex row.
HOT, COLD = 0.04, 0.015
_PART = 64  # complex rows that go through all sweeps in one call: between calls an interruption is heeded
_PADDING = 16  # floats between rows, so that those of many rows do not lie in the same few lines of a cache


def temperatures(sweeps: int) -> F32:
    """Of all sweeps with noise, float32 [sweeps]: falling by the same factor each time."""
    return np.geomspace(HOT, COLD, sweeps, dtype=np.float32)


def error_of_rows(target: Any, pull: Any, candidate: Candidate) -> F32:
    """The error of a complex row's outputs, ``tr(E H E^T)`` of its two real rows, for each of its pairs of columns: float32 [n].

    Args:
        target: torch float32 [2m, 2n], the matrix to come near to.
        pull: torch float32 [2m, 2n], the metric of the layer's inputs times what is missing to the target.
        candidate: with codes.
    """
    import torch

    missing = target - torch.from_numpy(candidate.dense)
    found = (pull * missing).sum(0).clamp(min=0).reshape(2, -1).sum(0)
    mean: F32 = (found / (len(target) // 2)).numpy()
    return mean


def anneal(pull: Any, metric: Metric, candidate: Candidate, heat: F32, seed: int) -> None:
    """Sweeps over the codes of all pairs, in order; without heat ``tr(E H E^T)`` cannot rise.

    Args:
        pull: torch float32 [2m, 2n], the metric times what is missing to the matrix to come near to.
        metric: of the layer's inputs.
        candidate: with codes and dense values, which are written.
        heat: float32 [sweeps, n]: temperature of each sweep and complex row, in units of the error. Zero: no noise.
        seed: of the noise.
    """
    import torch

    padded = np.zeros((pull.shape[1], len(pull) + _PADDING), np.float32)
    torch.from_numpy(padded)[:, : len(pull)] = pull.T
    noise = noise_of(heat)
    search = candidate.search(metric.hessian)
    with Threads(candidate, _PART) as run:
        run(partial(search.anneal, len(heat), pull=padded, noise=noise, seed=seed))


def noise_of(heat: F32) -> F32 | None:
    """By how much the C search may be off, float32 like ``heat`` (as :func:`anneal` has it); None without heat.

    Without rounding, Gibbs' distribution exp(-H_jj d^2 / heat) of what a value d is off has the variance heat / (2 H_jj), and
    pull moves by H_jj d. Noise is even, over (-w, w): its variance is w^2 / 3.
    """
    return np.sqrt(1.5 * heat, dtype=np.float32) if heat.any() else None
