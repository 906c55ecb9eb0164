"""What a layer's inputs say about errors of its weights: the metric in which they are measured.

With the inputs X [tokens, 2m] of a layer, an error E of its weights changes its outputs by ``|X E^T|^2 = tr(E H E^T)`` with
``H = X^T X`` (optimal brain surgeon; GPTQ, arXiv 2210.17323). Columns are worked on in pairs (j, j + m), because those make
one complex entry, and in the order of their weight in H, the heaviest first: what they leave over the later ones can still
make up for. The order is a matter of the work alone: the file keeps the columns as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32
from fairy2i_export.errors import WeightError

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the mean diagonal of H, added to the diagonal; which of them: damping.py
USUAL_DAMPING = 0.03  # where none can be tried
HALVES = 2  # of the text: what is learned from one can be tried on the other (aim.py)
PRECISE = 4096  # features up to which sums and inverses are float64; above, that would take gigabytes
_BLOCKS = 4  # that X^T X is computed in: ten of sixteen squares
_RETRIES = 4  # with ten times the damping each, where H is not positive definite in floating point


@dataclass(frozen=True)
class Metric:
    """The metric of one group of layers that read the same inputs.

    Attributes:
        columns: int64 [2m], the real columns in the order of the work: a pair j, j + m, the next pair, and so on.
        hessian: torch float32 [2m, 2m] of the mean token, damped, rows and columns in that order.
        factor: torch float32 [2m, 2m], upper triangular R with ``R^T R = hessian^-1``.
    """

    columns: npt.NDArray[np.int64]
    hessian: Any
    factor: Any

    @property
    def diagonal(self) -> F32:
        """Of the hessian, float32 [2m]."""
        found: F32 = self.hessian.diagonal().numpy()
        return found


class Statistics:
    """Sums over the inputs of a group of layers while a text passes by.

    Args:
        features: 2m, the number of input features.

    Attributes:
        grams: torch [HALVES, 2m, 2m], of each half of the text.
        tokens: of each half.
    """

    def __init__(self, features: int) -> None:
        import torch

        precision = torch.float64 if features <= PRECISE else torch.float32
        self.grams = torch.zeros((HALVES, features, features), dtype=precision)
        self.tokens = [0] * HALVES

    def add(self, inputs: Any, half: int) -> None:
        """Inputs [..., 2m], float32, of a batch that belongs to a half of the text."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.grams[half] += _gram(rows)
        self.tokens[half] += len(rows)

    def mean(self, half: int | None = None) -> Any:
        """X^T X of the mean token, torch [2m, 2m], of a half of the text or (None) of the whole."""
        if half is None:
            return self.grams.sum(0) / max(1, sum(self.tokens))
        return self.grams[half] / max(1, self.tokens[half])

    def metric(self, name: str, damping: float = USUAL_DAMPING, half: int | None = None) -> Metric:
        """The metric of what was added.

        Args:
            name: of a layer, for messages.
            damping: share of the mean diagonal that is added to the diagonal: directions the text did not show are not free.
            half: of the text, for a trial in float32; None = the whole.

        Raises:
            WeightError: inputs that are not finite.
        """
        import torch

        gram = self.mean(half) if half is None else self.mean(half).float()
        if not bool(torch.isfinite(gram).all()):
            raise WeightError(
                f"{name}: its inputs are not finite on the calibration text; the checkpoint is damaged or overflows in float32"
            )
        m = len(gram) // 2
        diagonal = gram.diagonal()
        order = torch.argsort(diagonal[:m] + diagonal[m:], descending=True, stable=True)
        columns = torch.stack([order, order + m], 1).reshape(-1)
        damped, lower = damped_gram(gram[columns][:, columns], damping * (float(diagonal.mean()) or 1.0))
        inverse = torch.cholesky_inverse(lower)
        upper = torch.linalg.cholesky(inverse, upper=True)
        return Metric(columns.numpy(), damped.float().contiguous(), upper.float().contiguous())


def _gram(rows: Any) -> Any:
    """X^T X of X, torch float32 [tokens, 2m]: blocks of its rows from the diagonal on, the rest is the same mirrored."""
    import torch

    features = rows.shape[1]
    gram = rows.new_empty((features, features))
    edges = [features * index // _BLOCKS for index in range(_BLOCKS + 1)]
    for start, stop in pairwise(edges):
        torch.matmul(rows[:, start:stop].T, rows[:, start:], out=gram[start:stop, start:])
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def damped_gram(gram: Any, damping: float) -> tuple[Any, Any]:
    """The matrix with a constant, or as much more as makes it positive definite, added to its diagonal, and its Cholesky factor."""
    import torch

    diagonal = torch.arange(len(gram))
    for attempt in range(_RETRIES):
        damped = gram.clone()
        damped[diagonal, diagonal] += damping * 10**attempt
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return damped, factor
    raise AssertionError("a positive semidefinite matrix plus thirty times its mean diagonal has a Cholesky factor")
