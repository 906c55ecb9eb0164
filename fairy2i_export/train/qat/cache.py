"""Keeps the dequantized weight of one layer for as long as the latent weight is the same.

Whether it is the same is asked of its bytes: a fingerprint at the speed of memory, a small part of what quantizing costs.
torch's version counters would be free, and wrong: assignments through ``.data``, optimizers that work on flat buffers
(DeepSpeed, FSDP) and all-gathers change weights without counting. On other devices, whose bytes the library cannot read,
nothing is kept: the result lives from the forward to the backward pass.

The buffer is used again, so a layer owns at most one. Backward passes that still need what is overwritten fail with
torch's usual error about in-place changes, as they do when an optimizer steps between a forward pass and its backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairy2i_export.train.qat import native_quantizer
from fairy2i_export.train.qat.fake_quantize import dequantize, in_reach
from fairy2i_export.train.qat.options import QuantizationOptions


def is_cached(weight: Tensor) -> bool:
    """Whether the dequantized form of a weight can be kept: it is in main memory, and no graph is being traced."""
    return in_reach(weight)


class WeightCache:
    """The dequantized weight of one layer. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._key: object = None

    def get(
        self,
        weight: Tensor,
        options: QuantizationOptions,
        rows: Tensor | None,
        scales: Tensor | None,
        dtype: torch.dtype,
        name: str,
        columns: Tensor | None = None,
    ) -> Tensor:
        """:func:`.fake_quantize.dequantize` of the arguments, from the last call if nothing has changed."""
        latent = weight.detach().contiguous()
        parts = [latent, *(x.detach().contiguous() for x in (rows, scales, columns) if x is not None)]
        key = (options, dtype, weight.shape, weight.dtype, *map(native_quantizer.content, parts))
        if self._buffer is not None and key == self._key:
            return self._buffer
        if self._buffer is not None and (self._buffer.shape, self._buffer.dtype) == (weight.shape, dtype):
            torch.autograd.graph.increment_version(self._buffer)
        else:
            with torch.inference_mode(False):  # else the buffer could never be part of a training step
                self._buffer = torch.empty(weight.shape, dtype=dtype)
        self._key = None  # not valid if what follows fails
        learned: Any = {"rows": rows, "scales": scales, "columns": columns}
        self._buffer = dequantize(latent, options, **learned, dtype=dtype, out=self._buffer, name=name)
        self._key = key
        return self._buffer

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()
