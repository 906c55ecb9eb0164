"""What a layer should be, so that it makes up for what quantized layers before it have changed.

On its actual inputs X a layer W gives Y = X W^T, and is wanted to give Y', the outputs of the float model; where outputs are added
to a residual stream, the error that the stream has there already is made up for as well. The change of W that does it in
the sense of least squares is ``(Y' - Y)^T X (X^T X)^-1``, and it learns this text by heart: far more is wrong with the
inputs of a deep network than a linear layer could know. So it is a ridge regression, whose result is shrunk besides: a ridge holds
back what is found in directions of little input, while noise is in all of them. Both are chosen for every layer by what the
regression on one half of the text explains of the other half, and there is no change where nothing is explained. The whole
text has twice the tokens of a half, so what holds back noise is halved there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairy2i_export.compile.calibrate.matrix.metric import HALVES, Statistics, damped_gram

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean diagonal of X^T X of a half, added to the diagonal
_ROWS = 128  # of a weight that the choice looks at


@dataclass(frozen=True)
class _Trial:
    """A regression on half of the text.

    Attributes:
        ridge: its strength, one of :data:`RIDGES`; 0: no change.
        share: of its result that serves the other half best, 0 to 1.
        gain: squares of the other half that it takes away.
    """

    ridge: float = 0.0
    share: float = 0.0
    gain: float = 0.0

    @property
    def share_of_whole(self) -> float:
        """The share is signal / (signal + noise), and with the whole text there is less noise."""
        return HALVES * self.share / (1 + (HALVES - 1) * self.share)


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
        best = [_Trial()] * len(weights)
        samples = [sums[:, :: -(-sums.shape[1] // _ROWS)] for sums in missing]
        for ridge in RIDGES:
            factors = [self._factor(gram, ridge) for gram in self._grams]
            for index, sample in enumerate(samples):
                trial = self._trial(sample, factors, ridge)
                if trial.gain > best[index].gain:
                    best[index] = trial
        aims = list(weights)
        for ridge in sorted({trial.ridge for trial in best if trial.ridge}):
            factor = self._factor(self._whole, ridge)
            for index, (weight, trial) in enumerate(zip(weights, best, strict=True)):
                if trial.ridge == ridge:
                    aims[index] = weight + trial.share_of_whole * _solve(missing[index].sum(0), factor)
        return aims

    def _trial(self, missing: Any, factors: Sequence[Any], ridge: float) -> _Trial:
        """The regression on either half, tried on the other one."""
        told = size = 0.0
        for half, factor in enumerate(factors):
            change = _solve(missing[half], factor)
            told += float((change * missing[1 - half]).sum())
            size += float((change @ self._grams[1 - half] * change).sum())
        share = min(1.0, told / size) if told > 0 and size > 0 else 0.0
        return _Trial(ridge, share, 2 * share * told - share * share * size)

    def _factor(self, gram: Any, ridge: float) -> Any:
        """Of X^T X with so many mean diagonals of a half added to the diagonal."""
        return damped_gram(gram, ridge * self._mean)[1]


def _solve(right: Any, factor: Any) -> Any:
    import torch

    return torch.cholesky_solve(right.T, factor).T
