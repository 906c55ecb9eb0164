"""A hundred clients at once, among them slow, broken and rude ones: the others are answered right, and nothing piles up.

FAIRY2I_LOAD_ROUNDS says how often all of them come again (make test-load: fifty times); memory counts from the second time on.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_serve_command import started

import fairy2i_runtime
from fuzz.strategies import JSON, SOME, changed, written
from runtime_models import chat_folder
from serving import Served, serving

ROUNDS = int(os.environ.get("FAIRY2I_LOAD_ROUNDS", "3"))
GROWTH_KB = (
    10_000  # of the server's memory after the second round, that counts as none: 4,000 in 120 rounds, most in the first 20
)
PROMPTS = ["Once upon a time", "Tom had", "The cat", "One day, a little girl", "Lily and Ben", "There was"]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("loaded") / "talk")


def requests_and_texts(folder: Path) -> list[tuple[str, dict[str, Any], str]]:
    """(path, body, what the model says to it without a server)."""
    model, found = fairy2i_runtime.load(folder, threads=1), []
    for number, prompt in enumerate(PROMPTS):
        length = 4 + 3 * number
        greedy = {"max_tokens": length, "temperature": 0, "repetition_penalty": 1}
        found.append((TEXT, {"prompt": prompt, **greedy}, model.generate(prompt, max_new_tokens=length).text))
        messages = [{"role": "user", "content": prompt}]
        found.append((CHAT, {"messages": messages, **greedy}, model.chat(messages, max_new_tokens=length).text))
    return found


class Clients:
    """Clients of the server at an address."""

    def __init__(self, address: str, asked: list[tuple[str, dict[str, Any], str]]) -> None:
        self._address, self._asked = address, asked
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._http = httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)

    async def usual(self, number: int) -> None:
        path, body, text = self._asked[number % len(self._asked)]
        response = await self._http.post(f"{self._address}{path}", json=body)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        assert (choice["text"] if path == TEXT else choice["message"]["content"]) == text

    async def streaming(self, number: int) -> None:
        path, body, text = self._asked[number % len(self._asked)]
        response = await self._http.post(f"{self._address}{path}", json={**body, "stream": True})
        assert text_of_stream(response.content) == text

    async def slow(self, number: int) -> None:
        """Sends the request a few bytes at a time, and reads the stream in the same way."""
        path, body, text = self._asked[number % len(self._asked)]
        content = json.dumps({**body, "stream": True}).encode()
        sent = HEAD.format(path=path, length=len(content)).encode().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        sent += content
        reader, writer = await self._connection()
        for at in range(0, len(sent), 7):
            writer.write(sent[at : at + 7])
            await writer.drain()
            await asyncio.sleep(0.01)
        received = b""
        while part := await reader.read(50):
            received += part
            await asyncio.sleep(0.001)
        writer.close()
        assert text_of_stream(received) == text

    async def leaving(self, number: int) -> None:
        """Goes away in the middle of the head, of the body, of the wait for an answer, or of the answer."""
        path, body, _ = self._asked[number % len(self._asked)]
        content = json.dumps({**body, "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
        sent = HEAD.format(path=path, length=len(content)).encode() + content
        reader, writer = await self._connection()
        when = ("head", "body", "wait", "answer")[number % 4]
        cut = {"head": 30, "body": len(sent) - len(content) // 2}.get(when, len(sent))
        writer.write(sent[:cut])
        await writer.drain()
        if when == "answer":
            assert (await reader.readline()).split()[1] == b"200"
        if number % 8 < 4:
            writer.transport.abort()  # RST
        else:
            writer.close()

    async def malformed(self, number: int) -> None:
        """Sends what is no HTTP or no request, and gets an error or an end of the connection."""
        chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunked += b"Transfer-Encoding: chunked\r\n\r\n"
        sent = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            chunked + b"zz\r\n",
            chunked + b"2\r\n{}\r\n0\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000,  # without an end
            b"\r\n" * 50 + b"\0" * 50 + b"\r\n\r\n",
            HEAD.format(path=TEXT, length=3).encode() + b"\xff{]",
        ][number % 10]
        reader, writer = await self._connection()
        try:
            writer.write(sent)
            await writer.drain()
            answer = await reader.read(12)
        except ConnectionError:  # refused before all was sent
            answer = b""
        assert answer in (b"", b"HTTP/1.1 400"), answer
        writer.transport.abort()

    async def watching(self, others: asyncio.Task[Any]) -> int:
        """Asks all the while whether the server is well; returns how often."""
        asked = 0
        while not others.done() or asked == 0:
            assert (await self._http.get(f"{self._address}/health")).json() == {"status": "ready"}
            asked += 1
            await asyncio.sleep(0.02)
        return asked

    async def all_at_once(self) -> int:
        kinds = (*(self.usual,) * 4, *(self.streaming,) * 2, self.slow, self.leaving, self.leaving, self.malformed)
        work: list[Coroutine[Any, Any, None]] = [kinds[n % 10](n // 10 + n) for n in range(100)]
        others = asyncio.ensure_future(asyncio.gather(*work))
        asked, _ = await asyncio.gather(self.watching(others), others)
        return asked


def text_of_stream(content: bytes) -> str:
    events = [line.removeprefix("data: ") for line in content.decode().splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]", content
    choices = [json.loads(event)["choices"][0] for event in events]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def resident_kb(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def idle(address: str, process: int, most: int | None) -> int:
    """Wait until nothing is answered and, if that is said, no more files are open than so many; how many are."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = httpx.get(f"{address}/metrics").text
        busy = [
            line for line in text.splitlines() if line.startswith(("fairy2i_answers_running ", "fairy2i_requests_waiting "))
        ]
        assert len(busy) == 2
        found = descriptors(process)
        if all(float(line.split()[1]) == 0 for line in busy) and (most is None or found <= most):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not idle after a minute: {busy}, {found} files open, expected {most}")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_hundred_clients_at_once(folder: Path) -> None:
    asked = requests_and_texts(folder)
    with started(str(folder), "--queue", "200") as (process, address):
        before, memory = None, []
        for _ in range(ROUNDS):
            watched = asyncio.run(Clients(address, asked).all_at_once())
            assert watched > 3
            before = idle(address, process.pid, before)
            memory.append(resident_kb(process.pid))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1] == "stopped serving"
    assert "Traceback" not in errors
    assert memory[-1] - memory[1] < GROWTH_KB, memory


# ---- bodies of any kind


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(fairy2i_runtime.load(folder, threads=1), max_tokens=3, max_body_kb=20) as found:
        yield found


SOUND: dict[str, Any] = {
    "model": "talk",
    "messages": [{"role": "user", "content": "Tom"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "repetition_penalty": 1.1,
    "seed": 1,
    "stop": ["\n"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {},
    "logit_bias": {},
    "n": 1,
}
PROMPTED = {"prompt": [5, 6, 7], **{name: value for name, value in SOUND.items() if name[:4] not in ("mess", "chat")}}


@SOME
@given(
    st.tuples(st.just(CHAT), changed(SOUND).map(written))
    | st.tuples(st.just(TEXT), changed(PROMPTED).map(written))
    | st.tuples(st.sampled_from([CHAT, TEXT]), JSON.map(written) | st.binary(max_size=60))
)
def test_any_body_is_answered_or_refused(served: Served, request_: tuple[str, bytes]) -> None:
    path, body = request_
    response = httpx.post(f"{served.url}{path}", content=body, headers={"Content-Type": "application/json"})
    if response.status_code == 200:
        assert response.content.endswith(b"data: [DONE]\n\n") or response.json()["choices"]
    else:
        assert response.status_code in (400, 404, 413, 422), response.text
        assert response.json()["error"]["message"]


@SOME
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"POST /v1/completions HTTP/1.1\r\n"]),
    st.sampled_from([b"", b"\r\n\r\n"]),
)
def test_any_bytes_are_a_request_or_refused(served: Served, data: bytes, begin: bytes, end: bytes) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(begin + data + end)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(12)
    assert answer in (b"", b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 405"), answer
    assert httpx.get(f"{served.url}/health").status_code == 200
