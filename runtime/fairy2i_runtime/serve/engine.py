"""Who is answered when, and with which cache: between the requests and the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any

from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.model import Model
from fairy2i_runtime.serve.caches import Kept, KeptCaches
from fairy2i_runtime.serve.interface.errors import ApiError, of_runtime
from fairy2i_runtime.serve.metrics import Metrics
from fairy2i_runtime.serve.prompts import Prompt
from fairy2i_runtime.serve.settings import Settings
from fairy2i_runtime.serve.turns import SharedDecoder
from fairy2i_runtime.text.generation import TextStream
from fairy2i_runtime.text.result import Result
from fairy2i_runtime.text.streaming import StreamDecoder

_LONGEST_RETRY = 60  # seconds a client is told to wait


def stopping() -> ApiError:
    """What clients are told by a server that ends."""
    return ApiError(503, "the server is being stopped", code="stopping", headers={"Retry-After": "5"})


@dataclass
class Answer:
    """An answer that is being written.

    Attributes:
        pieces: its text.
        stream: its generation; has a result when the pieces have ended.
    """

    pieces: AsyncGenerator[str, None]
    stream: TextStream

    @property
    def result(self) -> Result:
        return self.stream.result


class Engine:
    """A model that answers several requests at a time. For one event loop.

    Attributes:
        model: the model; its runs take turns from now on.
        sampling: options for requests that do not name them.
        requests: tasks that are reading or answering one.
        draining: whether the server ends: nothing more is begun.
        stopped: whether its patience has ended, too.
    """

    def __init__(self, model: Model, settings: Settings, metrics: Metrics, sampling: Mapping[str, Any]) -> None:
        decoder = model.decoder
        model.decoder = SharedDecoder(decoder.session, decoder.context_length, name=str(model.folder.model_file))
        self.model, self.settings, self.metrics, self.sampling = model, settings, metrics, sampling
        self.requests: set[asyncio.Task[Any]] = set()
        self.draining = self.stopped = False
        self._places = asyncio.Semaphore(settings.parallel)  # hands places on in the order of the requests
        self._waiting = 0
        self._running = 0
        self._caches = KeptCaches(model.decoder, settings.kept_caches, settings.cache_mb * 1_000_000)
        self._usual_seconds = 1.0  # of an answer, lately

    def _check_room(self) -> None:
        """Raise an :class:`ApiError` if a request would be refused: 503 at the end of the server, 429 if the queue is full."""
        if self.draining:
            raise stopping()
        waiting = self._waiting
        if self._places.locked() and waiting >= self.settings.queue:
            after = min(_LONGEST_RETRY, max(1, ceil(self._usual_seconds * (waiting + 1) / self.settings.parallel)))
            raise ApiError(
                429,
                f"{self.settings.parallel} answers are being written and {waiting} requests wait: try again in {after} s",
                code="queue_full",
                headers={"Retry-After": str(after)},
            )

    @asynccontextmanager
    async def place(self, asked: float) -> AsyncIterator[None]:
        """One of the places for answers, for which some requests may wait. Whatever takes long about a request is done in one.

        Args:
            asked: when the request came, in seconds of ``perf_counter``.

        Raises:
            ApiError: if there is no room.
        """
        self._check_room()
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            if self.draining:
                raise stopping()
            self.metrics.wait_seconds.observe(perf_counter() - asked)
            yield
        finally:
            self._places.release()

    @asynccontextmanager
    async def answer(self, prompt: Prompt) -> AsyncIterator[Answer]:
        """Answer a prompt, in a place that was taken for it; leaving the context early ends the answer.

        Raises:
            ApiError: if there is no memory; pieces raise what the runtime raises.
        """
        try:
            kept = self._caches.take(prompt.ids)
            self.metrics.cache_lookups.labels("hit" if kept.most else "miss").inc()
            stream = self._stream(prompt, kept)
        except Fairy2iRuntimeError as error:
            raise of_runtime(error) from error
        begun = perf_counter()
        self._running += 1
        try:
            async with aclosing(aiter(stream)) as pieces:
                yield Answer(pieces, stream)
        finally:
            self._running -= 1
            self._ended(stream, kept, perf_counter() - begun)

    def _stream(self, prompt: Prompt, kept: Kept) -> TextStream:
        model = self.model
        detokenizer = StreamDecoder(model.tokenizer.decode, context=prompt.ids if prompt.continues else ())
        return TextStream(model.decoder, kept.cache, prompt.ids, prompt.options, detokenizer, model.eos_ids, model.record)

    def _ended(self, stream: TextStream, kept: Kept, seconds: float) -> None:
        try:
            result = stream.result
        except RuntimeError:  # failed; or cancelled twice, and then its thread may still be using the cache
            self.metrics.answers.labels("failed").inc()
            return
        self._caches.give_back(kept)
        self._usual_seconds += 0.2 * (seconds - self._usual_seconds)
        self.metrics.answers.labels(result.finish_reason).inc()
        self.metrics.answer_tokens.inc(len(result.token_ids))
        self.metrics.lookup_tokens.labels("drafted").inc(result.timings.drafted)
        self.metrics.lookup_tokens.labels("accepted").inc(result.timings.accepted)
        self.metrics.prompt_tokens.labels("run").inc(result.timings.prompt_tokens)
        self.metrics.prompt_tokens.labels("cache").inc(result.timings.cached_tokens)

    def stop(self) -> None:
        """Begin nothing more, and cancel what is asked and answered; clients are told."""
        self.draining = self.stopped = True
        for task in self.requests:
            task.cancel()

    def update_metrics(self) -> None:
        """Set the gauges to what is now."""
        self.metrics.running.set(self._running)
        self.metrics.waiting.set(self._waiting)
        self.metrics.kept.set(len(self._caches))
        self.metrics.kept_bytes.set(self._caches.bytes)
