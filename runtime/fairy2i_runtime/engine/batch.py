"""Several texts run together: every weight is read once for all of them.

Every text keeps its own slots of the cache, from 0 on, so that its positions, its window and its room are those it has alone,
whatever stands beside it. Shorter texts are padded on the right, where the attention mask hides the padding and the next
tokens overwrite it. onnxruntime's attention takes several new tokens for several texts only while the cache is empty, so the
prompts run at once.
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
        lengths: tokens of every text in the cache.
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
        longest, context = max(len(text) for text in texts), decoder.context_length
        if longest > context:
            raise ContextError(
                f"{longest} tokens do not fit into the context of {context}; shorten the text, or load the model with a "
                "larger context_length if it was made for one"
            )
        capacity = context if new_tokens is None else min(longest + new_tokens, context)
        self.lengths = [0] * len(texts)
        self._decoder = decoder
        self._texts = [list(text) for text in texts]
        self._cache = KVCache(decoder.session, decoder.cache_shape, capacity, batch=len(texts))

    def room(self, number: int) -> int:
        """How many more tokens the text of that number can get."""
        return self._cache.capacity - self.lengths[number]

    def read(self) -> list[F32]:
        """Run the texts; logits after every token of each, float32 [length of the text, vocab]."""
        lengths = [len(text) for text in self._texts]
        logits = self._run_texts(max(lengths))
        return [np.asarray(row[:length], np.float32) for row, length in zip(logits, lengths, strict=True)]

    def begin(self) -> F32:
        """Run the texts; logits after the last token of each, float32 [texts, vocab]."""
        lengths = [len(text) for text in self._texts]
        logits = self._run_texts(max(lengths) - min(lengths) + 1)  # the shortest text ends that many columns before the end
        return np.asarray([row[length - min(lengths)] for row, length in zip(logits, lengths, strict=True)], np.float32)

    def append(self, tokens: Sequence[int | None]) -> F32:
        """Append one token to every text; logits of the next ones, float32 [texts, vocab].

        None instead of a token leaves a text as it is; its logits mean nothing, and it is not to be continued any more: the
        last slot of its cache was written over.

        Raises:
            ContextError: if there is no room.
        """
        full = [number for number, token in enumerate(tokens) if token is not None and self.room(number) == 0]
        if full:
            raise ContextError(f"text {full[0]}: the context of {self._cache.capacity} tokens is full")
        lengths = [length + (token is not None) for length, token in zip(self.lengths, tokens, strict=True)]
        columns = [[0 if token is None else token] for token in tokens]
        return np.asarray(self._run(np.array(columns, np.int64), lengths, 1)[:, -1], np.float32)

    def _run_texts(self, last: int) -> npt.NDArray[np.generic]:
        lengths = [len(text) for text in self._texts]
        columns = [text + [0] * (max(lengths) - len(text)) for text in self._texts]
        return self._run(np.array(columns, np.int64), lengths, last)

    def _run(self, ids: npt.NDArray[np.int64], lengths: list[int], last: int) -> npt.NDArray[np.generic]:
        """Run new columns, after which the texts have those lengths; logits of the last columns."""
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        logits = self._decoder.run(ids, mask, self._cache.binding, last=last)
        self.lengths = lengths
        return logits
