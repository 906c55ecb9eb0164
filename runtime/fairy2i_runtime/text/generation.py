"""Generate text: the loop that runs the model, chooses tokens, and gives out text."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from time import perf_counter

from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.interruption import Interrupted, Interruption
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.engine.lookup import LookAhead
from fairy2i_runtime.errors import ContextError, OptionError
from fairy2i_runtime.text.options import GenerationOptions
from fairy2i_runtime.text.result import FinishReason, Result, Timings
from fairy2i_runtime.text.sampling import Sampler
from fairy2i_runtime.text.streaming import StopMatcher, StreamDecoder


class TextStream:
    """Iterator of the text pieces of one generation.

    Nothing is run before the first piece is asked for. :attr:`result` is there once the stream has ended or was closed; a
    generation that fails raises its error and has none.

    Any thread may call :meth:`cancel` and :meth:`close` at any moment, also while another one iterates over the stream: for
    that one the stream ends. A stream of which several threads take pieces gives each piece to one of them.

    In asyncio, ``async for`` takes the pieces without blocking the event loop, and leaving that loop ends the generation.
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
        self._begun = False  # past the prompt
        self._reason: FinishReason = "interrupted"  # until another one is known
        self._result: Result | None = None
        self._failed = False
        self._interruption = Interruption()
        self._advancing = threading.Lock()  # held by the thread that makes the next piece
        self._advancer: int | None = None  # that thread
        self._pieces = self._generate()

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        if self._advancer == threading.get_ident():
            raise RuntimeError("the stream was asked for a piece while it makes one, by a signal handler or finalizer")
        with self._advancing:
            self._advancer = threading.get_ident()
            try:
                return next(self._pieces)
            finally:
                self._advancer = None

    def __aiter__(self) -> AsyncGenerator[str, None]:
        """The pieces for one ``async for`` of asyncio.

        Each is made when it is asked for, in a thread that belongs to this loop. However the loop is left, the generation ends:
        as soon as asyncio closes the iterator, which is at once when its task is cancelled or in ``contextlib.aclosing``, and
        in the next round of asyncio's event loop after a ``break`` or an exception.
        """
        return self._pieces_of_a_thread()

    async def _pieces_of_a_thread(self) -> AsyncGenerator[str, None]:
        from asyncio import get_running_loop  # here, since commands do without it
        from concurrent.futures import ThreadPoolExecutor

        thread = ThreadPoolExecutor(1, "fairy2i-stream")
        run = partial(get_running_loop().run_in_executor, thread)
        try:
            while (piece := await run(next, self, None)) is not None:
                yield piece
        finally:
            self.cancel()  # the thread may be in the middle of a step, and close() has to wait for its turn
            try:
                await run(self.close)
            finally:
                thread.shutdown(wait=False)

    def cancel(self) -> None:
        """Ask the generation to end early; returns at once.

        The thread that iterates over the stream gets no further piece, and the result says ``interrupted``. A prompt that is
        being read is given up as well. Has no effect on a stream that ended.
        """
        self._interruption.request()

    def close(self) -> None:
        """End the generation early and wait until it has ended. Closing a stream that ended has no effect."""
        self.cancel()
        if self._advancer == threading.get_ident():
            return  # called by a signal handler in the middle of a step: waiting for the step would never end
        with self._advancing:
            self._pieces.close()
            if not self._failed:
                self._end()  # not begun, or Ctrl-C came in the way of it

    def run(self, on_text: Callable[[str], object] | None = None) -> Result:
        """Run to the end, giving every piece of text to ``on_text``."""
        if on_text is not None and not callable(on_text):
            raise OptionError(f"on_text: expected a function that takes a text, got {on_text!r}")
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
        try:
            yield from self._steps()
        except (GeneratorExit, KeyboardInterrupt):
            self._end()
            raise
        except Interrupted:
            pass
        except BaseException:
            self._failed = True
            raise
        self._end()

    def _steps(self) -> Generator[str, None, None]:
        """The pieces, and ``_reason`` once it is known why they end."""
        logits = self._prefill()
        self._begun = True
        sampler, next_logits = Sampler(self._options), self._runner()
        while True:
            start = perf_counter()
            token = sampler.next(logits, self._cache.tokens)
            if token in self._eos_ids:
                self._reason = "eos"
                break
            self._tokens.append(token)
            piece = self._stops.push(self._detokenizer.push(token))
            self._spend(start)
            if piece:
                self._text.append(piece)
                yield piece
            self._interruption.check()
            if (end := self._reason_to_end()) is not None:
                self._reason = end
                break
            start = perf_counter()
            logits = next_logits(token)
            self._spend(start, runs=1)
        rest = self._stops.push(self._detokenizer.finish())
        rest += self._stops.finish()
        if rest:
            self._text.append(rest)
            yield rest

    def _end(self) -> None:
        """Note the result, once. A generation that did not get past the prompt is nothing to remember or to count."""
        if self._result is None:
            result = Result("".join(self._text), self._tokens, self._reason, self._timings)
            if self._begun and self._on_end is not None:
                self._on_end(result)
            self._result = result

    def _prefill(self) -> F32:
        start = perf_counter()
        # the last token is run even if it is cached: its logits are needed
        cached = self._cache.keep_prefix(self._prompt[:-1])
        logits = self._decoder.next_logits(self._prompt[cached:], self._cache, self._interruption)
        self._timings = Timings(len(self._prompt) - cached, cached, perf_counter() - start)
        return logits

    def _runner(self) -> Callable[[int], F32]:
        """What appends a token to the cache and gives the logits after it."""
        options = self._options
        if not options.lookup:
            return lambda token: self._decoder.next_logits([token], self._cache, self._interruption)
        ahead = LookAhead(self._decoder, self._cache, options.lookup, self._interruption)

        def next_logits(token: int) -> F32:
            drafted, accepted = ahead.drafted, ahead.accepted
            # the logits after this token make one more, and each that is run ahead makes one
            most = options.lookup if options.max_new_tokens is None else options.max_new_tokens - len(self._tokens) - 1
            logits = ahead.next_logits(token, most)
            self._timings += Timings(drafted=ahead.drafted - drafted, accepted=ahead.accepted - accepted)
            return logits

        return next_logits

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
