"""What a layer's inputs say about errors of its weights: the metric in which they are measured.

With the inputs X [tokens, 2m] of a layer, an error E of its weights changes its outputs by ``|X E^T|^2 = tr(E H E^T)`` with
``H = X^T X`` (optimal brain surgeon; GPTQ, arXiv 2210.17323). Columns are worked on in pairs (j, j + m), because those make
one complex entry, and in the order of their weight in H, the heaviest first: what they leave over the later ones can still
make up for. The order is a matter of the work alone: the file keeps the columns as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32
from fairy2i_export.errors import WeightError

DAMPING = 0.01  # of the mean diagonal of H, added to the diagonal: directions the text did not show are not free
_RETRIES = 4  # with ten times the damping each, where H is not positive definite in floating point


@dataclass(frozen=True)
class Metric:
    """The metric of one group of layers that read the same inputs.

    Attributes:
        columns: int64 [2m], the real columns in the order of the work: a pair j, j + m, the next pair, and so on.
        hessian: torch float32 [2m, 2m] of the mean token, damped, rows and columns in that order.
        factor: torch float32 [2m, 2m], upper triangular R with ``R^T R = hessian^-1``.
        shift: torch float32 [2m, 2m] or None: ``A + A shift`` is what the layer should be to make up, on its actual inputs,
            for what layers before it have changed; in the stored order of columns.
    """

    columns: npt.NDArray[np.int64]
    hessian: Any
    factor: Any
    shift: Any | None

    @property
    def diagonal(self) -> F32:
        """Of the hessian, float32 [2m]."""
        found: F32 = self.hessian.diagonal().numpy()
        return found


class Statistics:
    """Sums over the inputs of a group of layers while a text passes by.

    Args:
        features: 2m, the number of input features.
        paired: whether the float model's inputs come along.
    """

    def __init__(self, features: int, paired: bool) -> None:
        import torch

        self.gram = torch.zeros((features, features), dtype=torch.float64)
        self.cross = torch.zeros((features, features), dtype=torch.float64) if paired else None
        self.tokens = 0

    def add(self, inputs: Any, float_inputs: Any | None = None) -> None:
        """Inputs [..., 2m] that a batch really has, and those it has in the float model."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.gram += rows.T @ rows
        if self.cross is not None and float_inputs is not None:
            self.cross += (float_inputs.reshape(rows.shape) - rows).T @ rows
        self.tokens += len(rows)

    def metric(self, name: str, compensation: float) -> Metric:
        """The metric of what was added.

        Args:
            name: of a layer, for messages.
            compensation: share of the difference between the two inputs that the weights shall make up for, 0 to 1.

        Raises:
            WeightError: inputs that are not finite.
        """
        import torch

        if not bool(torch.isfinite(self.gram).all()):
            raise WeightError(
                f"{name}: its inputs are not finite on the calibration text; the checkpoint is damaged or overflows in float32"
            )
        features = len(self.gram)
        gram = self.gram / max(1, self.tokens)
        mean = float(gram.diagonal().mean()) or 1.0
        factor, damped = _factor(gram, mean, torch.arange(features))  # also says how much damping it takes
        half = features // 2
        diagonal = damped.diagonal()
        order = torch.argsort(diagonal[:half] + diagonal[half:], descending=True, stable=True)
        columns = torch.stack([order, order + half], 1).reshape(-1)
        shift = None
        if self.cross is not None and compensation:
            difference = self.cross * (compensation / max(1, self.tokens))
            shift = torch.cholesky_solve(difference.T, factor).T.float().contiguous()
        sorted_hessian = damped[columns][:, columns]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_hessian))
        upper = torch.linalg.cholesky(inverse, upper=True)
        return Metric(columns.numpy(), sorted_hessian.float().contiguous(), upper.float().contiguous(), shift)


def _factor(gram: Any, mean: float, diagonal: Any) -> tuple[Any, Any]:
    """Lower Cholesky factor of the damped matrix, and that matrix."""
    import torch

    for attempt in range(_RETRIES):
        damped = gram.clone()
        damped[diagonal, diagonal] += DAMPING * 10**attempt * mean
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return factor, damped
    raise AssertionError("a positive semidefinite matrix plus a tenth of its mean diagonal has a Cholesky factor")
