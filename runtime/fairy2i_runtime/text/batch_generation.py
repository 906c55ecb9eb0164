"""Continue several texts together: what generation.py does for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from fairy2i_runtime.engine.batch import Batch
from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.errors import ContextError, OptionError
from fairy2i_runtime.text.options import GenerationOptions
from fairy2i_runtime.text.result import FinishReason, Result, Timings
from fairy2i_runtime.text.sampling import Sampler
from fairy2i_runtime.text.streaming import StopMatcher, StreamDecoder
from fairy2i_runtime.text.tokenizer import Tokenizer


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
    if options.lookup:
        raise OptionError(
            "lookup: texts of a batch are run together, token by token; leave it out, or generate them one by one"
        )
    start = perf_counter()
    batch = Batch(decoder, prompts, options.max_new_tokens)
    longest = max(len(prompt) for prompt in prompts)
    if longest >= decoder.context_length:
        raise ContextError(
            f"the longest prompt has {longest} tokens and the context holds {decoder.context_length}, one new token included: "
            "shorten it"
        )
    texts = [_Text(list(prompt), options, tokenizer, eos_ids) for prompt in prompts]
    for text, logits in zip(texts, batch.begin(), strict=True):
        text.choose(logits)
    timings = Timings(sum(len(prompt) for prompt in prompts), 0, perf_counter() - start)
    while True:
        for number, text in enumerate(texts):
            if text.reason is None and batch.room(number) == 0:
                text.end("context")
        running = [number for number, text in enumerate(texts) if text.reason is None]
        if not running:
            break
        start = perf_counter()
        rows = batch.append([text.tokens[-1] if text.reason is None else None for text in texts])
        for number in running:
            texts[number].choose(rows[number])
        timings = replace(
            timings,
            decode_tokens=timings.decode_tokens + len(running),
            decode_seconds=timings.decode_seconds + perf_counter() - start,
        )
    return [Result(text.text, text.tokens, text.reason or "context", timings) for text in texts]
