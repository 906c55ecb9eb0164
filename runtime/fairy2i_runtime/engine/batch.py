"""Several texts run together: every weight is read once for all of them.

Texts of different length are padded on the left, as transformers does it: the last tokens stand in one column, new ones are
appended to all. The graph hides the padding from attention and counts positions without it. onnxruntime's attention takes
several new tokens for several texts only while the cache is empty, so the prompts run at once, and their logits with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.errors import ContextError, OptionError
from fairy2i_runtime.text.generation import FinishReason, GenerationOptions, Result, Timings
from fairy2i_runtime.text.sampling import Sampler
from fairy2i_runtime.text.streaming import StopMatcher, StreamDecoder
from fairy2i_runtime.text.tokenizer import Tokenizer


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


class _Text:
    """One text of a batch on its way: what :class:`~fairy2i_runtime.text.generation.TextStream` is to a single one."""

    def __init__(self, prompt: list[int], options: GenerationOptions, tokenizer: Tokenizer, eos: frozenset[int]) -> None:
        self._options, self._eos = options, frozenset() if options.ignore_eos else eos
        self._all = list(prompt)
        self._sampler = Sampler(options)
        self._detokenizer = StreamDecoder(tokenizer.decode, context=prompt)
        self._stops = StopMatcher(options.stop_strings)
        self.tokens: list[int] = []
        self.text = ""
        self.reason: FinishReason | None = None

    def choose(self, logits: F32) -> None:
        """Take the next token, or end."""
        token = self._sampler.next(logits, self._all)
        if token in self._eos:
            self.end("eos")
            return
        self.tokens.append(token)
        self._all.append(token)
        self.text += self._stops.push(self._detokenizer.push(token))
        if self._stops.found is not None:
            self.end("stop")
        elif self._options.max_new_tokens is not None and len(self.tokens) >= self._options.max_new_tokens:
            self.end("length")

    def end(self, reason: FinishReason) -> None:
        self.text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        self.reason = reason


def generate_batch(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    eos_ids: frozenset[int],
) -> list[Result]:
    """Continue several texts together; every one as it would be continued alone, up to rounding.

    Args:
        decoder: the model.
        tokenizer: its tokenizer.
        prompts: token ids, at least one each.
        options: how to generate; a seed counts for every text from its beginning.
        eos_ids: tokens that end a text.

    Raises:
        ContextError: if the longest prompt leaves no room for a new token.
        OptionError: if there is no prompt, an empty one, or a token that is not in the vocabulary.
    """
    start = perf_counter()
    batch = Batch(decoder, prompts, options.max_new_tokens)
    if batch.room < max(len(prompt) for prompt in prompts) + 1:
        raise ContextError(
            f"the longest prompt has {max(len(prompt) for prompt in prompts)} tokens and the context holds {batch.room}, one "
            "new token included: shorten it"
        )
    texts = [_Text(list(prompt), options, tokenizer, eos_ids) for prompt in prompts]
    for text, logits in zip(texts, batch.read(), strict=True):
        text.choose(logits[-1])
    timings = Timings(sum(len(prompt) for prompt in prompts), 0, perf_counter() - start)
    while any(text.reason is None for text in texts):
        if batch.room == 0:
            for text in texts:
                if text.reason is None:
                    text.end("context")
            break
        start = perf_counter()
        # texts that have ended go on with an arbitrary token until the last one has
        rows = batch.append([text.tokens[-1] if text.tokens else 0 for text in texts])
        running = [number for number, text in enumerate(texts) if text.reason is None]
        for number in running:
            texts[number].choose(rows[number])
        timings = replace(
            timings,
            decode_tokens=timings.decode_tokens + len(running),
            decode_seconds=timings.decode_seconds + perf_counter() - start,
        )
    return [Result(text.text, text.tokens, text.reason or "context", timings) for text in texts]
