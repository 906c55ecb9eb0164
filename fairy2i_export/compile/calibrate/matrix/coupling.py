"""Outputs that are not worth the same: codes chosen for the errors of all rows of a matrix together.

With the metric H of its inputs alone every row of a matrix is a problem of its own, and an error counts the same in whichever
output it is. Where it is known what becomes of the outputs, it is their metric G that counts: an error E of the weights costs
``tr(G E H E^T)`` (Kronecker-factored curvature, Martens and Grosse, arXiv 1503.05671; YAQA, arXiv 2505.22988, quantizes in such
a metric). Then what one row is off can be made up for by the others. For row r, with all others as they are, it is the old
problem with another target: what is missing to it becomes ``sum over s of (G_rs / G_rr) times what is missing to row s``. So
sweeps go from rows to rows, each time with the target that the others leave.

Rows are multiplied by ``sqrt(G_rr)`` first, which gives G ones on its diagonal, and are worked on in an order in which those
that are close to each other have little to do with each other: a few of them then take their turns together. All arrays are
transposed, in that order of rows and in the metric's order of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32
from fairy2i_export.compile.calibrate.matrix.annealing import noise_of
from fairy2i_export.compile.calibrate.matrix.feedback import Candidate
from fairy2i_export.compile.calibrate.matrix.fit import multiply_rows, refit_scales
from fairy2i_export.compile.calibrate.matrix.metric import Metric

DAMPING = 0.3  # of the mean diagonal of G, added to the diagonal
_SWEEPS = 4  # over the codes of a row before the next one's turn comes
_BLOCKS = (32, 16, 8, 4, 2)  # complex rows that take their turns together, if they are not too much alike
_ALIKE = 0.7  # spectral radius of what rows of a block have to do with each other: below 1, they do not go too far together
_RIDGE = 1e-4  # of the mean diagonal, in the fit of row multipliers


@dataclass(frozen=True)
class Coupling:
    """The metric of a matrix's outputs.

    Attributes:
        rows: torch int64 [2n], the real rows in the order of the work: the upper ones of all complex rows, then the lower ones.
        scale: torch float32 [2n], by which rows are multiplied, in that order: the root of G's diagonal over its mean.
        matrix: torch float32 [2n, 2n], G for rows that are multiplied, in that order: ones on its diagonal.
        block: complex rows that are worked on together.
    """

    rows: Any
    scale: Any
    matrix: Any
    block: int

    @classmethod
    def of(cls, gram: Any) -> Coupling | None:
        """From sums of outer products, torch float32 [2n, 2n]: damped, as no text shows all that outputs do.

        None where they overflow: some weights are to blame that will be refused by their name when it is their turn.
        """
        import torch

        mean = float(gram.diagonal().mean()) or 1.0
        damped = gram + DAMPING * mean * torch.eye(len(gram))
        if not bool(torch.isfinite(damped).all()):
            return None
        root = damped.diagonal().sqrt()
        matrix = damped / root / root[:, None]
        rows, block = _order(matrix)
        return cls(rows, (root / root.mean())[rows], matrix[rows][:, rows].contiguous(), block)

    def scaled(self, weight: Any) -> Any:
        """The rows of a matrix, torch float32 [2n, 2m], multiplied and in the order of the work."""
        return weight[self.rows] * self.scale[:, None]

    def restore(self, candidate: Candidate) -> None:
        """Have codes and multipliers be those of the matrix itself again; ``dense`` is not needed any more."""
        rows, n = self.rows.numpy(), candidate.codes.shape[3]
        multipliers, codes = np.empty_like(candidate.rows), np.empty_like(candidate.codes)
        multipliers[rows] = candidate.rows / self.scale.numpy()
        codes[..., rows[:n]] = candidate.codes
        candidate.rows, candidate.codes = multipliers, codes


def _order(matrix: Any) -> tuple[Any, int]:
    """An order of rows (see :class:`Coupling`), and the most complex rows that can take their turns together in it.

    Rows of one head have much to do with each other, so those of a block are as far apart as possible.
    """
    import torch

    n = len(matrix) // 2
    for block in _BLOCKS:
        if n % block:
            continue
        blocks = torch.arange(n).reshape(block, -1).T  # [n / block, block]
        both = torch.cat([blocks, blocks + n], 1)
        parts = matrix[both[:, :, None], both[:, None, :]] - torch.eye(2 * block)
        if float(torch.linalg.eigvalsh(parts).abs().max()) < _ALIKE:
            order = blocks.reshape(-1)
            return torch.cat([order, order + n]), block
    return torch.arange(2 * n), 1


def anneal_together(pull: Any, coupling: Coupling, metric: Metric, candidate: Candidate, heat: F32, seed: int) -> None:
    """Sweeps over the codes of all rows, each with the target that the others leave.

    Args:
        pull: torch float32 [2m, 2n], the metric of the inputs times what is missing to the matrix to come near to.
        coupling: of the outputs.
        metric: of the inputs.
        candidate: with codes and dense values, which are written.
        heat: float32 [sweeps, n]: temperature of each sweep and complex row, in units of the error. Zero: no noise.
        seed: of the noise.
    """
    import torch

    own = pull.T.contiguous()
    n = len(own) // 2
    work = np.zeros(own.shape, np.float32)
    seen = torch.from_numpy(work)
    search = candidate.search(metric.hessian)
    visits = [heat[first : first + _SWEEPS] for first in range(0, len(heat), _SWEEPS)]
    for number, part in enumerate(visits):
        noise = noise_of(part)
        for start in range(0, n, coupling.block):
            stop = min(n, start + coupling.block)
            rows = torch.cat([torch.arange(start, stop), torch.arange(n + start, n + stop)])
            before = coupling.matrix[rows] @ own
            seen[rows] = before
            search.anneal(len(part), (start, stop), pull=work, noise=noise, seed=seed * len(visits) + number)
            own[rows] += seen[rows] - before  # what is missing to these rows has changed, and to no others


def fit_together(target: Any, wanted: Any, coupling: Coupling, metric: Metric, candidate: Candidate, is_grid: bool) -> Any:
    """Fit scales to the targets that the other rows leave, then the multipliers of all rows at once.

    Args:
        target: torch float32 [2m, 2n].
        wanted: torch float32 [2m, 2n], the metric times the target.
        coupling: of the outputs.
        metric: of the inputs.
        candidate: with codes; gets scales and multipliers.
        is_grid: as in :func:`refit_scales`.

    Returns:
        The metric times what the candidate stands for then.
    """
    import torch

    dense = torch.from_numpy(candidate.dense)
    refit_scales(dense + (target - dense) @ coupling.matrix, metric, candidate, is_grid)
    found = metric.hessian @ dense  # as it is now
    # with factors f of the rows, tr(G E H E^T) is f N f - 2 f r + what does not depend on f
    normal = (coupling.matrix * (dense.T @ found)).double()
    right = (coupling.matrix * (dense.T @ wanted)).double().sum(1)
    normal.diagonal().add_(_RIDGE * (float(normal.diagonal().mean()) or 1.0))
    ones = torch.ones(len(normal), dtype=torch.float64)
    return multiply_rows(candidate, (ones + torch.linalg.solve(normal, right - normal @ ones)).float(), found)
