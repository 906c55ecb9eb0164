"""How far a metric is to be trusted: the damping with which codes chosen on one half of the text do best on the other.

A text of N tokens tells the 2m x 2m entries of a metric badly where N is no large multiple of 2m, and a search as thorough as
this one (feedback.py) makes use of every chance correlation. Damping takes that away, and too much of it takes away what is
true. The right amount depends on the layer and on the text, so it is tried, on some rows of one matrix for every group of layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairy2i_export.compile.calibrate.matrix.feedback import feed_back
from fairy2i_export.compile.calibrate.matrix.fit import start
from fairy2i_export.compile.calibrate.matrix.metric import DAMPINGS, Metric, Statistics

_ROWS = 64  # complex rows that are tried


def trusted_metric(statistics: Statistics, name: str, weight: Any, stages: int) -> Metric:
    """The metric of the whole text with the damping that was found.

    Args:
        statistics: of the inputs of a group of layers.
        name: of the first of them, for messages.
        weight: of one of them, torch float32 [2n, 2m].
        stages: of that one.

    Raises:
        WeightError: inputs that are not finite.
    """
    if not all(statistics.tokens):
        return statistics.metric(name)
    n = len(weight) // 2
    rows = np.arange(0, n, -(-n // _ROWS))
    sample = weight[np.concatenate([rows, rows + n])]
    losses = [_loss(statistics, name, sample, stages, damping) for damping in DAMPINGS]
    return statistics.metric(name, DAMPINGS[int(np.argmin(losses))])


def _loss(statistics: Statistics, name: str, sample: Any, stages: int, damping: float) -> float:
    """Squared error of outputs on the second half of the text, of codes found on the first."""
    import torch

    metric = statistics.metric(name, damping, 0)
    columns = torch.from_numpy(metric.columns)
    target = sample.T[columns].contiguous()
    candidate = start(target, metric, stages)
    feed_back(target, metric, candidate)
    error = target - torch.from_numpy(candidate.dense)
    other = statistics.mean(1)[columns][:, columns].float()
    return float(((other @ error) * error).sum())
