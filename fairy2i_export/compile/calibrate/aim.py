"""What a layer should be, so that it makes up for what quantized layers before it have changed.

On its actual inputs X a layer W gives Y = X W^T, and is wanted to give Y', the outputs of the float model; where outputs are added
to a residual stream, the error that the stream has there already is made up for as well. The change of W that does it in
the sense of least squares is ``(Y' - Y)^T X (X^T X)^-1``, and it learns this text by heart: far more is wrong with the
inputs of a deep network than a linear layer could know. So it is a ridge regression whose strength is chosen for every layer
by what it explains of the half of the text that it has not seen, and there is no change where nothing is explained.
"""

from __future__ import annotations

from typing import Any

from fairy2i_export.compile.calibrate.metric import HALVES, Statistics

RIDGES = (0.3, 1.0, 3.0, 10.0)  # of the mean diagonal of X^T X, added to the diagonal


class Ridge:
    """Regressions on the inputs of one group of layers, whose matrices are factored once.

    Args:
        statistics: of the inputs.
    """

    def __init__(self, statistics: Statistics) -> None:
        import torch

        self.grams = statistics.grams.float()
        self.whole = self.grams.sum(0)
        self._identity = torch.eye(len(self.whole))
        self._mean = float(self.whole.diagonal().mean()) / HALVES
        self._factors: dict[tuple[float, int | None], Any] = {}

    def aim(self, weight: Any, missing: Any) -> Any:
        """The weight plus the change that the missing outputs ask for.

        Args:
            weight: torch float32 [2n, 2m].
            missing: torch float32 [HALVES, 2n, 2m], sums of (Y' - Y)^T X over each half of the text.
        """
        best, gain = None, 0.0
        for ridge in RIDGES:
            explained = sum(self._explained(missing, ridge, half) for half in range(HALVES))
            if explained > gain:
                best, gain = ridge, explained
        if best is None:
            return weight
        return weight + self._solve(missing.sum(0), best, None)

    def _explained(self, missing: Any, ridge: float, half: int) -> float:
        """How much of the missing outputs of the other half the regression on one half takes away (squares)."""
        change = self._solve(missing[half], ridge, half)
        return float((change * (2 * missing[1 - half] - change @ self.grams[1 - half])).sum())

    def _solve(self, right: Any, ridge: float, half: int | None) -> Any:
        import torch

        if (ridge, half) not in self._factors:
            gram, count = (self.whole, HALVES) if half is None else (self.grams[half], 1)
            damped = gram + ridge * count * (self._mean or 1.0) * self._identity
            self._factors[ridge, half] = torch.linalg.cholesky(damped)
        return torch.cholesky_solve(right.T, self._factors[ridge, half]).T
