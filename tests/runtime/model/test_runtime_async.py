"""``async for`` over a stream: the text of an ordinary loop, an event loop that stays free, and an end however it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from fairy2i_runtime import Model, TextStream, load
from fairy2i_runtime.errors import RunError
from runtime_models import FailingSession, SlowSession

PROMPT = "Once upon a time"
LONG = {"max_new_tokens": 400, "ignore_eos": True}


@pytest.fixture
def model(chatty: Path) -> Model:
    return load(chatty, kernel="exact", threads=1)


async def pieces_of(stream: TextStream) -> list[str]:
    return [piece async for piece in stream]


def threads_left() -> list[str]:
    """Threads of streams that go on after a moment."""
    for thread in threading.enumerate():
        if thread.name.startswith("fairy2i-stream"):
            thread.join(10)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fairy2i-stream")]


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 60}, {"max_new_tokens": 40, "stop": "girl"}, {"temperature": 1, "seed": 3}]
)
def test_the_pieces_and_the_result_are_those_of_an_ordinary_loop(model: Model, options: dict) -> None:
    expected = model.stream(PROMPT, **options)
    text = list(expected)
    stream = model.stream(PROMPT, **options)
    assert asyncio.run(pieces_of(stream)) == text
    assert stream.result.token_ids == expected.result.token_ids
    assert stream.result.finish_reason == expected.result.finish_reason != "interrupted"
    assert asyncio.run(pieces_of(stream)) == []  # it has ended
    assert not threads_left()


def test_several_streams_at_once(model: Model) -> None:
    prompts = [PROMPT, "Tom had a ball", "The dog"]
    expected = [model.generate(prompt, max_new_tokens=40).text for prompt in prompts]

    async def together() -> list[list[str]]:
        return await asyncio.gather(*(pieces_of(model.stream(prompt, max_new_tokens=40)) for prompt in prompts))

    assert ["".join(pieces) for pieces in asyncio.run(together())] == expected
    assert not threads_left()


async def pieces_until_slow(stream: TextStream, session: SlowSession) -> None:
    """Take pieces under a time limit that is over as soon as the slow run has begun."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        session.entered.set = lambda: loop.call_soon_threadsafe(limit.reschedule, loop.time())
        await pieces_of(stream)


@pytest.mark.parametrize("slow", [0, 7])
@pytest.mark.parametrize("how", ["task", "timeout", "thread"])
def test_a_run_is_given_up_in_the_middle(model: Model, monkeypatch: pytest.MonkeyPatch, slow: int, how: str) -> None:
    """Of the prompt (0) or of a token, while the event loop does other things."""
    expected = model.generate(PROMPT, max_new_tokens=20)
    session = SlowSession(model.decoder.session, slow)
    stream = model.stream(PROMPT, **LONG)

    async def work() -> None:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await pieces_until_slow(stream, session)
            return
        task = asyncio.create_task(pieces_of(stream))
        while not session.entered.is_set():
            await asyncio.sleep(0.01)
        if how == "thread":
            threading.Thread(target=stream.cancel).start()
            assert len(await task) <= slow
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "session", session)
        asyncio.run(asyncio.wait_for(work(), 60))
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.token_ids == expected.token_ids[:slow]
    assert model.generate(PROMPT, max_new_tokens=20).token_ids == expected.token_ids
    assert not threads_left()


async def break_at_once(pieces: AsyncGenerator[str, None], seen: list[str]) -> None:
    async for piece in pieces:
        seen.append(piece)
        if len(seen) == 4:
            break


async def break_and_close(pieces: AsyncGenerator[str, None], seen: list[str]) -> None:
    async with aclosing(pieces):
        await break_at_once(pieces, seen)


async def fail(pieces: AsyncGenerator[str, None], seen: list[str]) -> None:
    async for piece in pieces:
        seen.append(piece)
        if len(seen) == 4:
            raise ValueError("the client has gone")


@pytest.mark.parametrize("leave", [break_at_once, break_and_close, fail])
def test_leaving_the_loop_ends_the_answer_and_the_conversation_goes_on(model: Model, leave: Callable) -> None:
    talk, seen = model.conversation("Be kind."), []

    async def work() -> None:
        stream = talk.stream("Tell me of a cat.", **LONG)
        try:
            await leave(aiter(stream), seen)
        except ValueError as error:
            error.__traceback__ = None  # it holds the loop, and with it the iterator
        if leave is not break_and_close:
            stream.close()  # asyncio would, in its next round
        assert stream.result.finish_reason == "interrupted"
        assert [message["content"] for message in talk.messages] == ["Be kind.", "Tell me of a cat.", "".join(seen)]
        second = await pieces_of(talk.stream("Go on.", max_new_tokens=20))
        assert "".join(second) == model.chat(talk.messages[:-1], max_new_tokens=20).text

    asyncio.run(work())
    assert not threads_left()


@pytest.mark.parametrize("leave", [break_at_once, fail])
def test_asyncio_closes_what_a_loop_leaves(model: Model, leave: Callable) -> None:
    stream = model.stream(PROMPT, **LONG)

    async def work() -> None:
        try:
            await leave(aiter(stream), [])
        except ValueError as error:
            error.__traceback__ = None

    asyncio.run(work())  # and no later than at its end
    assert stream.result.finish_reason == "interrupted"
    assert len(stream.result.token_ids) < 20
    assert not threads_left()


def test_an_error_reaches_the_loop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = model.conversation()
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "session", FailingSession(model.decoder.session, 5))
        with pytest.raises(RunError, match="bad allocation"):
            asyncio.run(pieces_of(talk.stream("Tell me of a cat.", **LONG)))
    assert talk.messages == []
    text = asyncio.run(pieces_of(talk.stream("Tell me of a cat.", max_new_tokens=20)))
    assert "".join(text) == model.chat(talk.messages[:1], max_new_tokens=20).text
    assert not threads_left()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_it_at_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SlowSession(model.decoder.session, 3)
    monkeypatch.setattr(model.decoder, "session", session)
    stream = model.stream(PROMPT, **LONG)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        assert session.entered.wait(60)
        time.sleep(0.2)  # a signal that comes just before the loop waits is heard when it wakes
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(pieces_of(stream))
    finally:
        signal.signal(signal.SIGINT, before)
    pressing.join(60)
    assert (stream.result.finish_reason, len(stream.result.token_ids)) == ("interrupted", 3)
    assert not threads_left()
