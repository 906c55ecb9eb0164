"""The memory of a conversation: keys and values of every token so far, updated in place.

One buffer per layer for the keys and one for the values, [batch, kv_heads, capacity, head], is bound both as the past
and as the present of every run, so onnxruntime writes the new tokens' rows into it and copies nothing. How much of it counts
is said by the attention mask alone; forgetting tokens is therefore free. The buffers start as zero pages of the operating
system: memory is taken as the text grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fairy2i_runtime.errors import ContextError


@dataclass(frozen=True)
class CacheShape:
    """What a model's cache looks like: layers, heads, values per head and their type (float32, float16 or int8)."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: npt.DTypeLike

    def size_bytes(self, capacity: int) -> int:
        """Bytes of a cache for ``capacity`` tokens, once it is full."""
        return 2 * self.layers * self.kv_heads * self.head_size * np.dtype(self.dtype).itemsize * capacity


class KVCache:
    """Keys and values of up to ``capacity`` tokens.

    Attributes:
        capacity: the most tokens it can hold.
        tokens: those it holds, for a batch of one text. Appended to by the decoder after a successful run, shortened by
            :meth:`truncate`.
        binding: the onnxruntime binding with the cache as inputs and outputs.
    """

    def __init__(self, session: ort.InferenceSession, shape: CacheShape, capacity: int, batch: int = 1) -> None:
        dims = [batch, shape.kv_heads, capacity, shape.head_size]
        self.capacity = capacity
        self.tokens: list[int] = []
        self.binding = session.io_binding()
        self._buffers: list[ort.OrtValue] = []
        for layer in range(shape.layers):
            for part in ("key", "value"):
                try:
                    buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(dims, shape.dtype))
                except MemoryError:
                    raise ContextError(
                        f"no memory for a context of {capacity} tokens ({batch * shape.size_bytes(capacity) / 1e6:.0f} MB); "
                        "choose a smaller context_length"
                    ) from None
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", buffer)
                self.binding.bind_ortvalue_output(f"present.{layer}.{part}", buffer)
                self._buffers.append(buffer)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        return self.capacity - len(self.tokens)

    def keep_prefix(self, tokens: Sequence[int]) -> int:
        """Forget everything after the longest common beginning with ``tokens``; returns its length."""
        same = 0
        for ours, theirs in zip(self.tokens, tokens, strict=False):
            if ours != theirs:
                break
            same += 1
        self.truncate(same)
        return same

    def truncate(self, length: int) -> None:
        """Forget the tokens from position ``length`` on."""
        del self.tokens[length:]
