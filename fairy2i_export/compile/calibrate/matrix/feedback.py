"""The first search for codes in the metric of a layer's inputs: error feedback. annealing.py has the second.

Error feedback gives codes to one pair of columns after another, each making up for the errors of those before. After a pair
has its codes, its error is spread over the pairs that are still to come, along the rows of the Cholesky factor R of the inverse
metric (metric.py): with E the error [2n, 2] of the pair and B its 2 x 2 block on the diagonal of R, ``later columns -= (E B^-1)
R[pair, later]``. That is GPTQ (arXiv 2210.17323) with blocks of two. The codes of a pair are those, of all combinations of U
and W, with the least ``|E B^-1|``.

The inner loop is C (:class:`fairy2i_export.codes.search.Search`); between blocks of pairs there is one matrix product. All
functions work on transposed matrices [2m, 2n] with the columns of the layer, now rows, in the metric's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from fairy2i_export.codes.native import F32, U8, Points, Rows
from fairy2i_export.codes.search import Search
from fairy2i_export.compile.calibrate.matrix.metric import Metric

_BLOCK = 32  # pairs whose feedback to all later columns is one matrix product


@dataclass
class Candidate:
    """A quantized matrix in the making, transposed and in the metric's order of columns.

    Attributes:
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        rows: float32 [2n], multiplier of every output.
        columns: float32 [2m], multiplier of every input.
        codes: uint8 [stages, 2, m, n].
        dense: float32 [2m, 2n], the matrix that they stand for.
    """

    scales: F32
    rows: F32
    columns: F32
    codes: U8
    dense: F32

    def points(self) -> tuple[Points, Points]:
        """The points of U and of W."""
        return Points(self.scales[:, 0]), Points(self.scales[:, 1])

    def search(self, metric: Any) -> Search:
        """A search for its codes in a metric, torch float32 [2m, 2m]."""
        return Search(metric.numpy(), self.scales, self.rows, self.columns, self.codes, self.dense)


def round_pair(pair: F32, points: tuple[Points, Points], codes: U8, dense: F32) -> None:
    """The nearest points of pairs of columns that are divided by their multipliers already.

    Args:
        pair: float32 [..., 2, 2n]: columns j and j + m.
        points: of U and W.
        codes: uint8 [stages, 2, ..., n], written.
        dense: float32 like ``pair``, written: what the codes stand for.
    """
    n = pair.shape[-1] // 2
    a11, a21, a12, a22 = pair[..., 0, :n], pair[..., 0, n:], pair[..., 1, :n], pair[..., 1, n:]
    half = np.float32(0.5)
    codes[:, 0], u_re, u_im = points[0].round(half * (a11 + a22), half * (a21 - a12))
    codes[:, 1], w_re, w_im = points[1].round(half * (a11 - a22), half * (a12 + a21))
    dense[..., 0, :n], dense[..., 0, n:] = w_re + u_re, w_im + u_im
    dense[..., 1, :n], dense[..., 1, n:] = w_im - u_im, u_re - w_re


def feed_back(target: Any, metric: Metric, candidate: Candidate) -> None:
    """Choose the codes of all pairs, in order; writes ``codes`` and ``dense`` of the candidate.

    Args:
        target: torch float32 [2m, 2n], the matrix to come near to.
        metric: of the layer's inputs.
        candidate: its scales and multipliers count.
    """
    work = target.clone()
    search, values = candidate.search(metric.factor), work.numpy()
    with Threads(candidate) as run:
        for start, stop in _blocks(candidate):
            run(partial(search.feed_back, (start, stop), values=values))
            if 2 * stop < len(work):
                work[2 * stop :].addmm_(
                    metric.factor[2 * start : 2 * stop, 2 * stop :].T, work[2 * start : 2 * stop], alpha=-1
                )


def _blocks(candidate: Candidate) -> Iterator[tuple[int, int]]:
    pairs = candidate.codes.shape[2]
    return ((start, min(start + _BLOCK, pairs)) for start in range(0, pairs, _BLOCK))


class Threads:
    """Runs a function on parts of the complex rows of a candidate, in as many threads as torch has.

    Args:
        candidate: whose rows.
        most: rows of a part; None: an equal share for each thread.
    """

    def __init__(self, candidate: Candidate, most: int | None = None) -> None:
        import torch

        n, threads = candidate.codes.shape[3], torch.get_num_threads()
        edges = [n * index // threads for index in range(threads + 1)] if most is None else [*range(0, n, most), n]
        self._parts = [(start, stop) for start, stop in pairwise(edges) if stop > start]
        threads = min(threads, len(self._parts))
        self._pool = ThreadPoolExecutor(threads, "fairy2i-search") if threads > 1 else None

    def __enter__(self) -> Callable[[Callable[[Rows], None]], None]:
        return self._run

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _run(self, function: Callable[[Rows], None]) -> None:
        list(map(function, self._parts) if self._pool is None else self._pool.map(function, self._parts))
