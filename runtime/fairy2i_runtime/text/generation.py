"""Generate text: the loop that runs the model, chooses tokens, and gives out text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from numbers import Integral
from time import perf_counter
from typing import Any, Literal

from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.errors import ContextError, OptionError, check_option
from fairy2i_runtime.text.sampling import Sampler, SamplingOptions
from fairy2i_runtime.text.streaming import StopMatcher, StreamDecoder

FinishReason = Literal["eos", "stop", "length", "context", "interrupted"]


@dataclass(frozen=True)
class GenerationOptions(SamplingOptions):
    """How to generate; the sampling options and when to stop.

    Attributes:
        max_new_tokens: the most tokens to generate; None = until the context is full.
        stop: texts that end the generation; they are not part of the result. One text, or several.
        ignore_eos: go on after an end-of-text token, for measurements and comparisons.

    Raises:
        OptionError: if a value is out of range.
    """

    max_new_tokens: int | None = 128
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens is not None:
            check_option("max_new_tokens", self.max_new_tokens, Integral, lambda n: n >= 1, "an integer of at least 1")
        stops = self.stop_strings
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise OptionError(f"stop: expected texts of at least one character, got {list(stops)!r}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def of(cls, **options: Any) -> GenerationOptions:
        """Options by name.

        Raises:
            OptionError: if a name is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise OptionError(f"unknown option {unknown[0]!r}: expected {', '.join(known)}")
        return cls(**options)


@dataclass(frozen=True)
class Timings:
    """How long a generation took, without the time its consumer spent on the text.

    Attributes:
        prompt_tokens: tokens of the prompt that were run.
        cached_tokens: tokens of the prompt that were in the cache already.
        prompt_seconds: time from the call to the logits of the first new token.
        decode_tokens: runs of one token each.
        decode_seconds: time of those, sampling and detokenizing included.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """0 if nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """0 if nothing was run."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Timings)))

    def __str__(self) -> str:
        cached = f" (+ {self.cached_tokens} cached)" if self.cached_tokens else ""
        return (
            f"prompt: {self.prompt_tokens} tokens{cached}, {self.prompt_tokens_per_second:.1f} tokens/s; "
            f"decode: {self.decode_tokens} tokens, {self.decode_tokens_per_second:.1f} tokens/s"
        )


@dataclass(frozen=True)
class Result:
    """A generated text.

    Attributes:
        text: the text, without the prompt and without the stop string that ended it.
        token_ids: the tokens generated, without the end-of-text token; with those of the stop string.
        finish_reason: ``eos`` (end-of-text token), ``stop`` (stop string), ``length`` (max_new_tokens), ``context`` (the
            context is full) or ``interrupted`` (the stream was closed early).
        timings: how long it took.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    timings: Timings


class TextStream:
    """Iterator of the text pieces of one generation.

    Nothing is run before the first piece is asked for. :attr:`result` is there once the stream has ended or was closed; a
    generation that fails raises its error and has none.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        prompt: Sequence[int],
        options: GenerationOptions,
        detokenizer: StreamDecoder,
        eos_ids: frozenset[int],
        on_end: Callable[[Result], None] | None = None,
    ) -> None:
        """Prepare a generation.

        Args:
            decoder: the model.
            cache: its beginning that equals that of ``prompt`` is used, the rest forgotten.
            prompt: token ids, at least one.
            options: how to generate.
            detokenizer: makes text of the tokens.
            eos_ids: tokens that end a text.
            on_end: called with the result of a generation that got past the prompt, also if it is closed early or
                interrupted by Ctrl-C, but not if it fails.

        Raises:
            ContextError: if the prompt is empty or leaves no room for a new token.
        """
        if not prompt:
            raise ContextError("the prompt is empty and the tokenizer adds no beginning-of-text token: give it some text")
        if len(prompt) >= cache.capacity:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens and the context holds {cache.capacity}, one new token included: "
                "shorten it, or begin a new conversation"
            )
        self._decoder, self._cache, self._prompt, self._options = decoder, cache, list(prompt), options
        self._detokenizer, self._eos_ids, self._on_end = detokenizer, frozenset() if options.ignore_eos else eos_ids, on_end
        self._stops = StopMatcher(options.stop_strings)
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._timings = Timings()
        self._result: Result | None = None
        self._failed = False
        self._pieces = self._generate()

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the generation early. Closing a stream that ended has no effect."""
        self._pieces.close()
        if self._result is None and not self._failed:  # not begun
            self._result = self._result_now("interrupted")

    def run(self, on_text: Callable[[str], object] | None = None) -> Result:
        """Run to the end, giving every piece of text to ``on_text``."""
        with closing(self):
            for piece in self:
                if on_text is not None:
                    on_text(piece)
        return self.result

    @property
    def result(self) -> Result:
        """The finished generation.

        Raises:
            RuntimeError: if the stream has not ended yet, or failed.
        """
        if self._failed:
            raise RuntimeError("the generation failed and has no result: iterating over the stream raised the error")
        if self._result is None:
            raise RuntimeError("the stream has not ended: iterate over it to the end, or close it")
        return self._result

    def _generate(self) -> Generator[str, None, None]:
        """The pieces. What fails leaves the cache with the tokens that were run, and nothing else behind."""
        reason: FinishReason = "interrupted"
        begun = False
        try:
            logits = self._prefill()
            begun = True
            sampler = Sampler(self._options)
            while True:
                start = perf_counter()
                token = sampler.next(logits, self._cache.tokens)
                if token in self._eos_ids:
                    reason = "eos"
                    break
                self._tokens.append(token)
                piece = self._stops.push(self._detokenizer.push(token))
                self._spend(start)
                if piece:
                    self._text.append(piece)
                    yield piece
                if (end := self._reason_to_end()) is not None:
                    reason = end
                    break
                start = perf_counter()
                logits = self._decoder.next_logits([token], self._cache)
                self._spend(start, runs=1)
            rest = self._stops.push(self._detokenizer.finish())
            rest += self._stops.finish()
            if rest:
                self._text.append(rest)
                yield rest
        except (GeneratorExit, KeyboardInterrupt):
            if begun:
                self._end(reason)
            raise
        except BaseException:
            self._failed = True
            raise
        self._end(reason)

    def _end(self, reason: FinishReason) -> None:
        self._result = self._result_now(reason)
        if self._on_end is not None:
            self._on_end(self._result)

    def _result_now(self, reason: FinishReason) -> Result:
        return Result("".join(self._text), self._tokens, reason, self._timings)

    def _prefill(self) -> F32:
        start = perf_counter()
        # the last token is run even if it is cached: its logits are needed
        cached = self._cache.keep_prefix(self._prompt[:-1])
        logits = self._decoder.next_logits(self._prompt[cached:], self._cache)
        self._timings = Timings(len(self._prompt) - cached, cached, perf_counter() - start)
        return logits

    def _reason_to_end(self) -> FinishReason | None:
        if self._stops.found is not None:
            return "stop"
        if self._options.max_new_tokens is not None and len(self._tokens) >= self._options.max_new_tokens:
            return "length"
        if self._cache.room == 0:
            return "context"
        return None

    def _spend(self, start: float, runs: int = 0) -> None:
        self._timings += Timings(decode_tokens=runs, decode_seconds=perf_counter() - start)
