"""What a layer should be, so that it makes up for what quantized layers before it have changed.

On its actual inputs X a layer W gives Y = X W^T, and is wanted to give Y', the outputs of the float model; where outputs are added
to a residual stream, the error that the stream has there already is made up for as well. The change of W that does it in
the sense of least squares is ``(Y' - Y)^T X (X^T X)^-1``, and it learns this text by heart: far more is wrong with the
inputs of a deep network than a linear layer could know. So it is a ridge regression whose strength is chosen for every layer
by what it explains of the half of the text that it has not seen, and there is no change where nothing is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairy2i_export.compile.calibrate.matrix.metric import HALVES, Statistics

RIDGES = (0.3, 1.0, 3.0, 10.0)  # of the mean diagonal of X^T X, added to the diagonal


class Ridge:
    """Regressions on the inputs of one group of layers.

    Args:
        statistics: of the inputs.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._grams = statistics.grams.float()
        self._whole = self._grams.sum(0)
        self._mean = float(self._whole.diagonal().mean()) / HALVES or 1.0

    def aims(self, weights: Sequence[Any], missing: Sequence[Any]) -> list[Any]:
        """The weights plus the changes that the missing outputs ask for.

        Args:
            weights: of the layers of the group, torch float32 [2n, 2m] each.
            missing: torch float32 [HALVES, 2n, 2m] each, sums of (Y' - Y)^T X over each half of the text.
        """
        best: list[float | None] = [None] * len(weights)
        gains = [0.0] * len(weights)
        for ridge in RIDGES:
            explained = [0.0] * len(weights)
            for half in range(HALVES):
                factor = self._factor(self._grams[half], ridge)
                for index, sums in enumerate(missing):
                    explained[index] += self._explained(sums, factor, half)
            for index, gain in enumerate(explained):
                if gain > gains[index]:
                    best[index], gains[index] = ridge, gain
        aims = list(weights)
        for ridge in sorted({ridge for ridge in best if ridge is not None}):
            factor = self._factor(self._whole, HALVES * ridge)
            for index, weight in enumerate(weights):
                if best[index] == ridge:
                    aims[index] = weight + _solve(missing[index].sum(0), factor)
        return aims

    def _explained(self, missing: Any, factor: Any, half: int) -> float:
        """How much of the missing outputs of the other half the regression on one half takes away (squares)."""
        change = _solve(missing[half], factor)
        return float((change * (2 * missing[1 - half] - change @ self._grams[1 - half])).sum())

    def _factor(self, gram: Any, ridge: float) -> Any:
        """Of X^T X with so many mean diagonals of a half added to the diagonal."""
        import torch

        damped = gram.clone()
        damped.diagonal().add_(ridge * self._mean)
        return torch.linalg.cholesky(damped)


def _solve(right: Any, factor: Any) -> Any:
    import torch

    return torch.cholesky_solve(right.T, factor).T
