"""The exporter's quantizer on torch tensors in main memory: the C library reads the tensor and writes the result in place."""

from __future__ import annotations

import os
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairy2i_export.codes.native import F32, LatentMatrix, Rows, each, fingerprint
from fairy2i_export.codes.profiles import rounding_of
from fairy2i_export.codes.quantizer import rms_of_rows
from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.train.qat.options import QuantizationOptions


def _unchecked(sums: Any) -> None:
    """Values that are not finite show in the scales."""


_WORTH_A_THREAD = 1 << 16  # complex entries


_NUMPY_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}


class _Memory:
    """The bytes of a contiguous tensor for numpy, which keeps this object, and so the tensor, alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        place = {"shape": (tensor.nbytes,), "typestr": "|u1", "data": (tensor.data_ptr(), False), "version": 3}
        self.__array_interface__ = place


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous tensor as a numpy array, bfloat16 included.

    Not by ``tensor.numpy()``: that makes the memory impossible to resize, and FSDP frees gathered weights by resizing.
    """
    array: npt.NDArray[Any] = np.asarray(_Memory(tensor)).view(_NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)
    return array


def content(tensor: Tensor) -> tuple[int, ...]:
    """Numbers that change when a tensor's values change, however that was done; of a contiguous tensor."""
    flat = as_array(tensor).reshape(-1)
    parts = max(1, min(torch.get_num_threads(), flat.size // _WORTH_A_THREAD))
    pieces = np.array_split(flat, parts)
    pool = _pool()
    return tuple(map(fingerprint, pieces) if pool is None or parts == 1 else pool.map(fingerprint, pieces))


def dequantize_into(
    out: Tensor,
    weight: Tensor,
    options: QuantizationOptions,
    rows: Tensor | None = None,
    scales: Tensor | None = None,
    columns: Tensor | None = None,
) -> F32 | None:
    """Write the dequantized form of ``weight`` [2n, 2m] into ``out``, float32 or bfloat16.

    Args:
        out: contiguous [2n, 2m].
        weight: contiguous, float32, float16 or bfloat16.
        options: how.
        rows: learned row multipliers [2n], or None.
        scales: learned scales [stages, 2, 2], or None to find them.
        columns: learned column multipliers [2m], or None.

    Returns:
        The scales, float32 [stages, 2, 2]. None if they are not finite, which they are not if they are computed from a weight
        that is not; nothing is written then.
    """
    matrix, blocks, pool = _matrix(weight, options)
    rnd = rounding_of(options.profile)
    if rows is not None:
        matrix.divide_rows(as_array(rows.float().contiguous()))
    elif options.row_multiplier == "rms":
        matrix.divide_rows(rms_of_rows(matrix, rnd, pool, _unchecked, blocks))
    if columns is not None:
        matrix.divide_columns(as_array(columns.float().contiguous()))
    if scales is not None:
        found = as_array(scales.float().contiguous())
        STRATEGIES[options.quantizer].choose(matrix)
    else:
        found = STRATEGIES[options.quantizer].scales(matrix, rnd, pool, _unchecked, blocks)
    if not np.isfinite(found).all():
        return None
    target = as_array(out)
    each(lambda part: matrix.dequantize(part, found, target), blocks, pool)
    return found


def find_parameters(weight: Tensor, options: QuantizationOptions) -> tuple[Tensor, Tensor]:
    """Row multipliers [2n] (root mean squares, or ones if the options have none) and scales [stages, 2, 2] to start from."""
    matrix, blocks, pool = _matrix(weight.detach().contiguous(), options)
    rnd = rounding_of(options.profile)
    rows = np.ones(weight.shape[0], np.float32)
    if options.row_multiplier != "none":
        rows = rms_of_rows(matrix, rnd, pool, _unchecked, blocks)
        matrix.divide_rows(rows)
    scales = STRATEGIES[options.quantizer].scales(matrix, rnd, pool, _unchecked, blocks)
    return torch.from_numpy(rows), torch.from_numpy(scales)


def codes_of(
    weight: Tensor, options: QuantizationOptions, rows: Tensor | None, scales: Tensor, columns: Tensor | None = None
) -> Tensor:
    """Codes uint8 [stages, 2 (U, W), n, m] that given scales lead to."""
    matrix, _, _ = _matrix(weight.detach().contiguous(), options)
    if rows is not None:
        matrix.divide_rows(as_array(rows.float().contiguous()))
    if columns is not None:
        matrix.divide_columns(as_array(columns.float().contiguous()))
    STRATEGIES[options.quantizer].choose(matrix)
    return torch.from_numpy(matrix.codes((0, matrix.n), as_array(scales.float().contiguous()))[0])


def _matrix(weight: Tensor, options: QuantizationOptions) -> tuple[LatentMatrix, list[Rows], Executor | None]:
    matrix = LatentMatrix(as_array(weight), options.stages, options.profile)
    parts = max(1, min(torch.get_num_threads(), matrix.n, matrix.n * matrix.m // _WORTH_A_THREAD))
    borders = [matrix.n * i // parts for i in range(parts + 1)]
    return matrix, list(pairwise(borders)), None if parts == 1 else _pool()


def _pool() -> Executor | None:
    threads = torch.get_num_threads()
    return None if threads == 1 else _threads(threads, os.getpid())


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> Executor:
    """As many threads as torch uses; a forked process has none of its parent's and gets its own."""
    return ThreadPoolExecutor(count, thread_name_prefix="fairy2i-quantize")
