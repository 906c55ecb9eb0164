"""The exporter's quantizer on torch tensors in main memory: the C library reads the tensor and writes the result in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairy2i_export.native import F32, LatentMatrix, Rows, each, fingerprint
from fairy2i_export.quantizer import Rounding, _axis_scale, _row_rms, rounding_of
from fairy2i_export.train.options import QuantizationOptions


def greedy_scales(matrix: LatentMatrix, stages: int, rnd: Rounding, blocks: list[Rows], pool: Executor | None) -> F32:
    scales = np.empty((0, 2, 2), np.float32)
    for _ in range(stages):
        parts = each(lambda part: matrix.sums(part, scales), blocks, pool)  # noqa: B023 - called before scales changes
        sums = np.concatenate([part[0] for part in parts])
        counts = sum(part[1].sum(axis=0) for part in parts)
        found = [[_axis_scale(sums[:, u_w, axis], counts[u_w, axis], rnd) for axis in range(2)] for u_w in range(2)]
        scales = np.concatenate([scales, np.array([found], np.float32)])
    return scales


def rms_of_rows(matrix: LatentMatrix, rnd: Rounding, blocks: list[Rows], pool: Executor | None) -> F32:
    squares = np.concatenate(each(matrix.squares, blocks, pool))
    return _row_rms(squares.T.reshape(-1) / (2 * matrix.m), rnd)


# how the scales of a matrix are found: (matrix, stages, rounding, blocks of rows, threads) -> float32 [stages, 2, 2]
STRATEGIES: dict[str, Callable[[LatentMatrix, int, Any, list[Rows], Executor | None], F32]] = {"greedy": greedy_scales}
_WORTH_A_THREAD = 1 << 14  # complex entries


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous tensor as a numpy array, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def content(tensor: Tensor) -> tuple[int, ...]:
    """Numbers that change when a tensor's values change, however that was done; of a contiguous tensor."""
    flat = as_array(tensor).reshape(-1)
    parts = max(1, min(torch.get_num_threads(), flat.size // _WORTH_A_THREAD))
    pieces = np.array_split(flat, parts)
    pool = _pool()
    return tuple(map(fingerprint, pieces) if pool is None or parts == 1 else pool.map(fingerprint, pieces))


def dequantize_into(
    out: Tensor, weight: Tensor, options: QuantizationOptions, rows: Tensor | None = None, scales: Tensor | None = None
) -> F32:
    """Write the dequantized form of ``weight`` [2n, 2m] into ``out``, float32 or bfloat16.

    Args:
        out: contiguous [2n, 2m].
        weight: contiguous, float32, float16 or bfloat16.
        options: how.
        rows: learned row multipliers [2n], or None.
        scales: learned scales [stages, 2, 2], or None to find them.

    Returns:
        The scales, float32 [stages, 2, 2]; not finite if the weight is not.
    """
    matrix, blocks, pool = _matrix(weight, options)
    rnd = rounding_of(options.profile)
    if rows is not None:
        matrix.divide_rows(as_array(rows.float().contiguous()))
    elif options.row_multiplier == "rms":
        matrix.divide_rows(rms_of_rows(matrix, rnd, blocks, pool))
    if scales is not None:
        found = as_array(scales.float().contiguous())
    else:
        found = STRATEGIES[options.quantizer](matrix, options.stages, rnd, blocks, pool)
    target = as_array(out)
    each(lambda part: matrix.dequantize(part, found, target), blocks, pool)
    return found


def find_parameters(weight: Tensor, options: QuantizationOptions) -> tuple[Tensor, Tensor]:
    """Row multipliers [2n] (root mean squares, or ones if the options have none) and scales [stages, 2, 2] to start from."""
    matrix, blocks, pool = _matrix(weight.detach().contiguous(), options)
    rnd = rounding_of(options.profile)
    rows = np.ones(weight.shape[0], np.float32)
    if options.row_multiplier != "none":
        rows = rms_of_rows(matrix, rnd, blocks, pool)
        matrix.divide_rows(rows)
    scales = STRATEGIES[options.quantizer](matrix, options.stages, rnd, blocks, pool)
    return torch.from_numpy(rows), torch.from_numpy(scales)


def codes_of(weight: Tensor, options: QuantizationOptions, rows: Tensor | None, scales: Tensor) -> Tensor:
    """Codes uint8 [stages, 2 (U, W), n, m] that given scales lead to."""
    matrix, _, _ = _matrix(weight.detach().contiguous(), options)
    if rows is not None:
        matrix.divide_rows(as_array(rows.float().contiguous()))
    return torch.from_numpy(matrix.codes((0, matrix.n), as_array(scales.float().contiguous()))[0])


def _matrix(weight: Tensor, options: QuantizationOptions) -> tuple[LatentMatrix, list[Rows], Executor | None]:
    matrix = LatentMatrix(as_array(weight), options.stages, options.profile)
    parts = max(1, min(torch.get_num_threads(), matrix.n, matrix.n * matrix.m // _WORTH_A_THREAD))
    borders = [matrix.n * i // parts for i in range(parts + 1)]
    return matrix, list(zip(borders[:-1], borders[1:], strict=True)), None if parts == 1 else _pool()


def _pool() -> Executor | None:
    threads = torch.get_num_threads()
    return None if threads == 1 else _threads(threads, os.getpid())


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> Executor:
    """As many threads as torch uses; a forked process has none of its parent's and gets its own."""
    return ThreadPoolExecutor(count, thread_name_prefix="fairy2i-quantize")
