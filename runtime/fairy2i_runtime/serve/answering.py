"""POST /v1/chat/completions and /v1/completions, from the bytes of a request to those of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.serve.engine import Answer, Engine, stopping
from fairy2i_runtime.serve.interface import wire
from fairy2i_runtime.serve.interface.errors import ApiError, of_runtime
from fairy2i_runtime.serve.interface.schema import ChatRequest, CompletionRequest, Request, parse
from fairy2i_runtime.serve.prompts import Prompt, make_prompt

_LAST_WORD_SECONDS = 1.0  # for the error of a stream whose client may not be reading


class Answering:
    """The ASGI application of one kind of requests."""

    def __init__(self, engine: Engine, name: str, kind: type[ChatRequest] | type[CompletionRequest]) -> None:
        self._engine, self._name, self._kind = engine, name, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = perf_counter()
        reply = _Reply(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        self._engine.requests.add(task)
        try:
            if self._engine.draining:
                raise stopping()
            async with asyncio.timeout(self._engine.settings.timeout):
                body = await _read(HttpRequest(scope, receive), self._engine.settings.max_body_kb * 1000)
                await _unless_gone(receive, self._answer(body, asked, reply))
        except TimeoutError:
            error = ApiError(
                503,
                f"the answer was not complete after {self._engine.settings.timeout:g} s: ask for fewer tokens, or try again",
                code="timeout",
                headers={"Retry-After": "10"},
            )
            await reply.fail(error)
        except Fairy2iRuntimeError as error:
            await reply.fail(of_runtime(error))
        except ApiError as error:
            await reply.fail(error)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._engine.stopped:
                raise
            task.uncancel()
            await reply.fail(stopping())
        finally:
            self._engine.requests.discard(task)

    async def _answer(self, body: bytes, asked: float, reply: _Reply) -> None:
        engine = self._engine
        request = parse(self._kind, body)
        if request.model not in (None, self._name):
            raise ApiError(
                404,
                f"the model {request.model!r} does not exist, this is {self._name!r}",
                param="model",
                code="model_not_found",
            )
        limit = engine.settings.max_tokens
        form = wire.Form(self._kind is ChatRequest, self._name, with_usage=request.stream_options.include_usage)
        async with engine.place(asked):
            prompt = await asyncio.to_thread(make_prompt, engine.model, engine.sampling, limit, request)
            async with engine.answer(prompt) as answer:
                await self._write(request, prompt, answer, asked, form, reply)
        engine.metrics.answer_seconds.observe(perf_counter() - asked)

    async def _write(
        self, request: Request, prompt: Prompt, answer: Answer, asked: float, form: wire.Form, reply: _Reply
    ) -> None:
        text: list[str] = []
        async for piece in answer.pieces:
            if not text:
                self._engine.metrics.first_text_seconds.observe(perf_counter() - asked)
                if request.stream:  # not earlier: what fails until here gets a status of its own
                    await reply.begin(form.first())
            text.append(piece)
            if request.stream:
                await reply.send(form.piece(piece))
        if not request.stream:
            await reply.whole(form.whole("".join(text), answer.result, len(prompt.ids)))
            return
        if not text:
            await reply.begin(form.first())
        await reply.send(form.last(answer.result, len(prompt.ids)), more=False)


class _Reply:
    """The one response to a request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send, self._begun = scope, receive, send, False

    async def whole(self, content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        await JSONResponse(content, status, headers)(self._scope, self._receive, self._send)

    async def begin(self, events: bytes) -> None:
        """Headers of a stream, and its first events. Proxies are asked not to collect them."""
        self._begun = True
        names = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))
        headers = [*names, (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if events:
            await self.send(events)

    async def send(self, events: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def fail(self, error: ApiError) -> None:
        """Say what is wrong: by the status, or where it is out already by the stream's last event."""
        if not self._begun:
            await self.whole(error.body, error.status, error.headers)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self.send(wire.failure(error), more=False)


async def _read(request: HttpRequest, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413 if it is longer than allowed, 400 if it is not declared to be JSON: browsers send other types to any
            server for any page, but ask the server before they send JSON.
        ClientDisconnect: if the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(400, f"expected Content-Type: application/json, got {kind or 'none'}", code="invalid_content_type")
    too_long = ApiError(
        413,
        f"the request is longer than the {most} bytes that this server reads",
        code="request_too_large",
        headers={"Connection": "close"},
    )  # the rest of it is not read
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_long
    return bytes(body)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the client goes away before it is done: then it is cancelled. Returns when it has ended.

    Args:
        receive: of a request whose body was read.
        work: answers it.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait((working, watching))
    if not working.cancelled():
        working.result()
