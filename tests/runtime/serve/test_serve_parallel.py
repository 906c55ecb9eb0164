"""Several requests at a time: turns, places, the queue, kept caches, and what becomes of clients that go away.

Answers that must still be running when something else happens are held by an event or by a run that takes hours, never by time.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import fairy2i_runtime
from fairy2i_runtime.serve.caches import KeptCaches
from fairy2i_runtime.serve.prompts import make_prompt
from fairy2i_runtime.serve.turns import SharedDecoder, Turns
from runtime_models import FailingSession, SlowSession, chat_folder, stories_folder
from serving import Served, serving

QUESTION = {"role": "user", "content": "Once upon a time"}
ASKED: dict[str, Any] = {"model": "talk", "messages": [QUESTION], "max_tokens": 5}
ENDLESS = {**ASKED, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
QUICK = {"model": "talk", "prompt": "Tom had", "max_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("served") / "talk")


def load(folder: Path) -> fairy2i_runtime.Model:
    return fairy2i_runtime.load(folder, threads=1)


@contextmanager
def serving_slowly(folder: Path, slow: int, **settings: Any) -> Iterator[tuple[Served, SlowSession]]:
    """A server whose run number ``slow`` takes hours unless its answer is given up."""
    model = load(folder)
    session = SlowSession(model.decoder.session, slow)
    model.decoder.session = session
    with serving(model, **settings) as served:
        yield served, session


def wait_until(served: Served, name: str, value: float) -> None:
    """Until a metric has a value: each look at it is a request, which the server answers when it has nothing else to do."""
    for _ in range(5000):
        if served.metric(name) == value:
            return
    raise AssertionError(f"{name} is {served.metric(name)}")


# ---- turns


def test_turns_are_taken_in_order() -> None:
    turns, order = Turns(), []
    asked = [threading.Event() for _ in range(4)]

    def take(n: int) -> None:
        asked[n].set()
        with turns:
            order.append(n)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    with turns:
        for n, thread in enumerate(threads):
            thread.start()
            assert asked[n].wait(60)
            while len(turns._waiting) <= n:  # it asks right now
                pass
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3]
    with turns:  # nobody left it taken
        pass


def test_a_turn_is_given_up_by_an_error() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns:
        raise KeyError
    with turns:
        pass


def test_an_answer_does_not_wait_for_another_ones_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long answer stops between two tokens until the short one, which began later, is complete."""
    go_on, reached, caches = threading.Event(), threading.Event(), []
    usual = SharedDecoder.run

    def run(self: SharedDecoder, ids: Any, mask: Any, cache: Any, *rest: Any, **more: Any) -> Any:
        caches.append(cache)
        if cache is caches[0] and caches.count(cache) == 50:
            reached.set()
            assert go_on.wait(60)
        return usual(self, ids, mask, cache, *rest, **more)

    monkeypatch.setattr(SharedDecoder, "run", run)
    with serving(load(folder), parallel=2) as served:
        client = served.client()
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert reached.wait(60)
        short = client.completions.create(**QUICK)
        assert short.usage.completion_tokens == 4
        assert served.metric("fairy2i_answers_running") == 1  # the long one
        go_on.set()
        assert sum(bool(chunk.choices[0].delta.content) for chunk in stream) > 50
    assert caches.count(caches[0]) == 200


def test_answers_at_the_same_time_are_those_of_one_after_the_other(folder: Path) -> None:
    prompts = ["Once upon a time", "Tom had", "The cat", "One day, a little girl", "Lily and Ben", "There was"]
    model = load(folder)
    expected = [model.generate(text, max_new_tokens=60).text for text in prompts]
    with serving(load(folder), parallel=3) as served, ThreadPoolExecutor(6) as pool:
        client = served.client()
        found = pool.map(lambda text: client.completions.create(model="talk", prompt=text, max_tokens=60), prompts * 3)
        assert [answer.choices[0].text for answer in found] == expected * 3


# ---- clients that go away


class Sent:
    """A request by hand, whose connection can be closed at any moment."""

    def __init__(self, served: Served, path: str, body: dict[str, Any]) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        self.connection = socket.create_connection((host, int(port)))
        self.connection.sendall(f"{head}\r\n".encode() + content)

    def go_away(self) -> None:
        self.connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("slow", [0, 3], ids=["in the prompt", "in the answer"])
def test_a_client_that_goes_away_ends_its_answer(folder: Path, stream: bool, slow: int) -> None:
    with serving_slowly(folder, slow, parallel=1, queue=1) as (served, session):
        sent = Sent(served, "/v1/chat/completions", {**ASKED, "max_tokens": 50, "stream": stream})
        assert session.entered.wait(60)
        sent.go_away()
        assert served.client().completions.create(**QUICK).usage.completion_tokens == 4  # waits for the place
        assert served.metric('fairy2i_answers_total{end="interrupted"}') == 1
        assert served.metric('fairy2i_answers_total{end="length"}') == 1


def test_the_client_of_openai_closes_a_stream(folder: Path) -> None:
    with serving_slowly(folder, 20, parallel=1, queue=1) as (served, session):
        stream = served.client().chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert session.entered.wait(60)
        stream.close()
        assert served.client().completions.create(**QUICK).usage.completion_tokens == 4
        assert served.metric('fairy2i_answers_total{end="interrupted"}') == 1


def test_a_client_that_waits_goes_away(folder: Path) -> None:
    with serving_slowly(folder, 3, parallel=1, queue=1) as (served, session):
        stream = served.client().chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert session.entered.wait(60)
        sent = Sent(served, "/v1/completions", QUICK)
        wait_until(served, "fairy2i_requests_waiting", 1)
        sent.go_away()
        wait_until(served, "fairy2i_requests_waiting", 0)
        assert served.metric("fairy2i_answers_running") == 1
        stream.close()
        assert served.client().completions.create(**QUICK).usage.completion_tokens == 4


# ---- the queue


def test_a_full_queue_refuses(folder: Path) -> None:
    with serving_slowly(folder, 3, parallel=1, queue=1) as (served, session), ThreadPoolExecutor(1) as pool:
        client = served.client()
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert session.entered.wait(60)
        waiting = pool.submit(lambda: client.completions.create(**QUICK))
        wait_until(served, "fairy2i_requests_waiting", 1)
        with pytest.raises(openai.RateLimitError, match="1 answers are being written and 1 requests wait") as refused:
            client.completions.create(**QUICK)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.body["code"] == "queue_full"
        assert httpx.get(f"{served.url}/health").status_code == 200
        stream.close()
        assert waiting.result(60).usage.completion_tokens == 4


def test_no_queue_at_all(folder: Path) -> None:
    with serving_slowly(folder, 3, parallel=1, queue=0) as (served, session):
        stream = served.client().chat.completions.create(**ENDLESS, stream=True)
        assert session.entered.wait(60)
        with pytest.raises(openai.RateLimitError):
            served.client().completions.create(**QUICK)
        stream.close()
        wait_until(served, "fairy2i_answers_running", 0)
        assert served.client().completions.create(**QUICK).usage.completion_tokens == 4


def test_a_prompt_that_is_being_prepared_has_a_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning a long text into tokens is work as well: the limits hold from there on."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return make_prompt(*arguments)

    monkeypatch.setattr("fairy2i_runtime.serve.answering.make_prompt", slow)
    with serving(load(folder), parallel=1, queue=0) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: served.client().completions.create(**QUICK))
        try:
            assert begun.wait(60)
            with pytest.raises(openai.RateLimitError):
                served.client().completions.create(**QUICK)
        finally:
            go_on.set()
        assert first.result(60).usage.completion_tokens == 4


# ---- answers that fail


@pytest.mark.parametrize(("slow", "stream"), [(0, False), (0, True), (3, False)])
def test_an_answer_that_takes_too_long(folder: Path, slow: int, stream: bool) -> None:
    with serving_slowly(folder, slow, parallel=1, timeout=0.5) as (served, _):
        with pytest.raises(openai.InternalServerError, match="was not complete after") as late:
            served.client().chat.completions.create(**{**ASKED, "max_tokens": 50}, stream=stream)
        assert late.value.status_code == 503
        assert late.value.response.headers["retry-after"]
        assert served.client().completions.create(**QUICK).usage.completion_tokens == 4


def test_a_stream_that_takes_too_long_ends_with_an_error(folder: Path) -> None:
    with serving_slowly(folder, 3, parallel=1, timeout=0.5) as (served, _):
        stream = served.client().chat.completions.create(**{**ASKED, "max_tokens": 50}, stream=True)
        with pytest.raises(openai.APIError, match="was not complete after"):
            list(stream)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("successes", [0, 4])
def test_a_run_that_fails(folder: Path, stream: bool, successes: int) -> None:
    model = load(folder)
    model.decoder.session = FailingSession(model.decoder.session, successes)
    with serving(model) as served:
        with pytest.raises(openai.APIError, match="onnxruntime gave up"):
            list(served.client().chat.completions.create(**{**ASKED, "max_tokens": 50}, stream=stream))
        again = served.client().chat.completions.create(**ASKED)
        assert again.choices[0].message.content == load(folder).chat([QUESTION], max_new_tokens=5).text
        assert served.metric('fairy2i_answers_total{end="failed"}') == 1


def test_a_mistake_of_ours_is_a_500(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with serving(load(folder)) as served:
        monkeypatch.setattr("fairy2i_runtime.serve.answering.make_prompt", broken)
        with pytest.raises(openai.InternalServerError, match="its log says why") as failed:
            served.client().completions.create(**QUICK)
    assert failed.value.body["code"] == "internal_error"


# ---- the end of the server


def test_answers_end_before_the_server_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(load(folder)) as served:
        stream = served.client().chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        served.server.handle_exit(15, None)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"


@pytest.mark.parametrize("how", ["grace", "a second signal"])
def test_the_server_does_not_wait_forever(folder: Path, how: str) -> None:
    with serving_slowly(folder, 3, parallel=1, grace=0.3 if how == "grace" else 1000.0) as (served, session):
        client = served.client()
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert session.entered.wait(60)
        served.server.handle_exit(15, None)
        if how != "grace":
            served.server.handle_exit(15, None)
        with pytest.raises(openai.APIError, match="the server is being stopped"):
            list(stream)


def test_nothing_is_begun_at_the_end(folder: Path) -> None:
    with serving_slowly(folder, 3, parallel=1, queue=1) as (served, session), ThreadPoolExecutor(1) as pool:
        client = served.client()
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        assert session.entered.wait(60)
        waiting = pool.submit(lambda: client.completions.create(**QUICK))
        wait_until(served, "fairy2i_requests_waiting", 1)
        served.engine.draining = True
        assert httpx.get(f"{served.url}/health/ready").status_code == 503
        assert httpx.get(f"{served.url}/health/live").status_code == 200
        with pytest.raises(openai.InternalServerError, match="is being stopped"):
            client.completions.create(**QUICK)
        stream.close()
        with pytest.raises(openai.InternalServerError, match="is being stopped"):
            waiting.result(60)


# ---- kept caches


def talk(served: Served, turns: int) -> tuple[list[str], list[int]]:
    """A conversation: the answers, and how many tokens of each prompt were in a kept cache."""
    messages: list[Any] = []
    answers, cached = [], []
    for _ in range(turns):
        messages.append(QUESTION)
        found = served.client().chat.completions.create(model="talk", messages=messages, max_tokens=30)
        answers.append(found.choices[0].message.content)
        cached.append(found.usage.prompt_tokens_details.cached_tokens)
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers, cached


def test_a_follow_up_goes_on_from_its_cache(folder: Path) -> None:
    with serving(load(folder), kept_caches=0) as served:
        expected, nothing = talk(served, 4)
        assert served.metric("fairy2i_caches_kept") == 0
    assert nothing == [0] * 4
    with serving(load(folder)) as served:
        answers, cached = talk(served, 4)
        assert served.metric("fairy2i_caches_kept") == 1
    assert answers == expected
    conversation = load(folder).conversation()
    for n in range(4):
        assert cached[n] == conversation.ask(QUESTION["content"], max_new_tokens=30).timings.cached_tokens
    assert min(cached[1:]) > 15


def test_conversations_in_turn_keep_a_cache_each(folder: Path) -> None:
    """Another beginning is another conversation, and does not take the cache of one that begins a little like it."""
    names = ["Tom", "Lily", "Ben"]
    with serving(load(folder)) as served:
        client = served.client()
        talks: dict[str, list[Any]] = {name: [{"role": "user", "content": f"{name} " * 20}] for name in names}
        for turn in range(3):
            for name, messages in talks.items():
                found = client.chat.completions.create(model="talk", messages=messages, max_tokens=10)
                assert (found.usage.prompt_tokens_details.cached_tokens > 20) == (turn > 0)
                messages += [
                    {"role": "assistant", "content": found.choices[0].message.content},
                    {"role": "user", "content": name},
                ]
        assert served.metric("fairy2i_caches_kept") == 3


def test_caches_are_kept_within_limits() -> None:
    decoder = fairy2i_runtime.load(stories_folder(), threads=1).decoder

    def use(caches: KeptCaches, *tokens: int) -> int:
        """Run some tokens in the cache that there is for them; how many were there already."""
        kept = caches.take(tokens)
        same = kept.cache.keep_prefix(tokens[:-1])  # the last one is run: its logits are needed
        decoder.next_logits(tokens[same:], kept.cache)
        caches.give_back(kept)
        return same

    token = decoder.cache_shape.size_bytes(1)
    caches = KeptCaches(decoder, 2, 1 << 40)
    for first in (1, 2, 3):
        assert use(caches, first, 5, 6, 7) == 0
    assert (len(caches), caches.bytes) == (2, 8 * token)
    assert use(caches, 2, 5, 6, 7, 8) == 4  # kept, and now the one used last
    assert use(caches, 1, 5, 6, 7) == 0  # had to go; now 3 has
    assert use(caches, 3, 5) == 0
    assert caches.bytes == 6 * token

    caches = KeptCaches(decoder, 9, 10 * token)
    use(caches, *range(1, 9))
    assert use(caches, 1, 2, 3, 4) == 3
    assert caches.bytes == 8 * token  # it was longer once
    use(caches, 9, 9, 9)
    assert (len(caches), caches.bytes) == (1, 3 * token)  # together they are too large
    assert use(caches, 1, 2, 3, 4) == 0

    caches = KeptCaches(decoder, 2, 1 << 40)
    use(caches, 1, 2, 3, 4, 5)
    assert use(caches, 1, 2, 9, 9, 9) == 0  # less than half of it: another conversation
    taken = caches.take([1, 2, 3, 4, 5])
    assert len(caches) == 1
    assert caches.take([1, 2, 3, 4, 5]).cache is not taken.cache  # nobody else gets it meanwhile
