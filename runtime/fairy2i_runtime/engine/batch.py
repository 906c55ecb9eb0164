"""Several texts run together: every weight is read once for all of them.

Texts of different length are padded on the left, as transformers does it: the last tokens stand in one column, new ones are
appended to all. The graph hides the padding from attention and counts positions without it. onnxruntime's attention takes
several new tokens for several texts only while the cache is empty, so the prompts run at once, and their logits with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.errors import ContextError, OptionError


class Batch:
    """Texts that are continued together.

    Attributes:
        padding: for every text how many columns stand empty before it.
        length: columns so far.
    """

    def __init__(self, decoder: Decoder, texts: Sequence[Sequence[int]], new_tokens: int | None = 0) -> None:
        """Make room for texts and their continuation.

        Args:
            decoder: the model.
            texts: token ids, at least one text of at least one token.
            new_tokens: how many tokens each is going to be continued by at most; None = up to the context.

        Raises:
            ContextError: if the longest text does not fit, or there is no memory for all.
            OptionError: if there is no text, an empty one, or a token that is not in the vocabulary.
        """
        if not texts or not all(len(text) for text in texts):
            raise OptionError("texts: expected at least one text, and at least one token in each")
        for text in texts:
            decoder.check_tokens(text)
        longest = max(len(text) for text in texts)
        capacity = decoder.context_length if new_tokens is None else min(longest + new_tokens, decoder.context_length)
        if longest > capacity:
            raise ContextError(
                f"{longest} tokens do not fit into the context of {capacity}; shorten the text, or load the model with a "
                "larger context_length if it was made for one"
            )
        self.padding = [longest - len(text) for text in texts]
        self.length = 0
        self._decoder = decoder
        self._texts = [list(text) for text in texts]
        self._cache = KVCache(decoder.session, decoder.cache_shape, capacity, batch=len(texts))
        self._mask = np.ones((len(texts), capacity), np.int64)
        for row, empty in enumerate(self.padding):
            self._mask[row, :empty] = 0

    @property
    def room(self) -> int:
        """How many more tokens every text can get."""
        return self._cache.capacity - self.length

    def read(self) -> list[F32]:
        """Run the texts; logits after every token of each, float32 [length of the text, vocab]."""
        columns = [[0] * empty + text for empty, text in zip(self.padding, self._texts, strict=True)]
        logits = self._run(np.array(columns, np.int64))
        return [np.asarray(row[empty:], np.float32) for row, empty in zip(logits, self.padding, strict=True)]

    def append(self, tokens: Sequence[int]) -> F32:
        """Append one token to every text; logits of the next ones, float32 [texts, vocab].

        Raises:
            ContextError: if there is no room.
        """
        if self.room == 0:
            raise ContextError(f"the context of {self._cache.capacity} tokens is full")
        return np.asarray(self._run(np.array(tokens, np.int64)[:, None])[:, -1], np.float32)

    def _run(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
        total = self.length + ids.shape[1]
        logits = self._decoder.run(ids, np.ascontiguousarray(self._mask[:, :total]), self._cache.binding)
        self.length = total
        return logits
