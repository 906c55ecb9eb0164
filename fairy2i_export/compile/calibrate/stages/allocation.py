"""Who gets how many stages, when an average is asked for: the split with the least predicted loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

_MOST_UNITS = 1 << 16  # in which weights are counted: finer units would take memory and hardly ever change the split
# squared relative error of Gaussian weights by stages, for where nothing was measured
_TYPICAL = (0.362, 0.111, 0.0317, 0.0086)


def allocate(parameters: Mapping[str, int], losses: Mapping[str, Sequence[float]], bits: float) -> dict[str, int]:
    """Stages of every matrix, so that the predicted losses add up to the least at ``bits`` per weight or fewer.

    A multiple-choice knapsack, solved exactly by dynamic programming over the weights that get another stage, counted in the
    greatest common divisor of the matrices' sizes (or a coarser unit, rounded so that the average is kept).

    Args:
        parameters: weights of each matrix, by name.
        losses: predicted loss of each matrix at 1, 2, 3 and 4 stages; the length of each says what is allowed at most.
        bits: average stages of a weight, at least 1.
    """
    extra = math.floor((bits - 1) * sum(parameters.values()) + 1e-6)  # weights that may get one more stage, with repetition
    unit = max(math.gcd(*parameters.values()), -(-extra // _MOST_UNITS), 1)
    room = extra // unit
    best = np.zeros(room + 1)  # least loss of the matrices so far, by units that they may take
    chosen: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
    for name, size in parameters.items():
        options = np.full((len(losses[name]), room + 1), np.inf)
        for more, loss in enumerate(losses[name]):
            taken = -(-size * more // unit)
            if taken <= room:
                options[more, taken:] = best[: room + 1 - taken] + loss
        chosen[name] = options.argmin(axis=0).astype(np.uint8)
        best = options.min(axis=0)
    stages: dict[str, int] = {}
    for name in reversed(chosen):
        more = int(chosen[name][room])
        stages[name] = 1 + more
        room -= -(-parameters[name] * more // unit)
    return {name: stages[name] for name in parameters}


def expected_stages(parameters: Mapping[str, int], bits: float) -> dict[str, int]:
    """A split as if all weights mattered alike: sizes hardly depend on which matrices get more."""
    return allocate(parameters, {name: [size * error for error in _TYPICAL] for name, size in parameters.items()}, bits)
