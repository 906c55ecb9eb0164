"""Two servers behind nginx as examples/serve has it. Skipped where nginx is missing, unless FAIRY2I_NEEDS_NGINX is set."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import fairy2i_runtime
from conftest import ROOT
from runtime_models import SlowSession, chat_folder
from serving import Served, serving

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
CONFIGURATION = ROOT / "examples" / "serve" / "nginx.conf"
KEY = "secret-1"
if not os.environ.get("FAIRY2I_NEEDS_NGINX"):
    pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (.ci/serve installs it)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("served") / "talk")


def configured(folder: Path, ports: list[int], replicas: list[Served]) -> Path:
    """The example with other ports, and files of its own below a folder."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for old, new in {
        "listen 8000;": f"listen 127.0.0.1:{ports[0]};",
        "127.0.0.1:8001": replicas[0].url.removeprefix("http://"),
        "127.0.0.1:8002": replicas[1].url.removeprefix("http://"),
        "worker_processes auto;": f"worker_processes 1;\npid {folder}/pid;\nerror_log stderr;",
        "http {": "http {\n"
        + "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + "\naccess_log off;",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    written = folder / "nginx.conf"
    written.write_text(text, encoding="utf-8")
    return written


@contextmanager
def behind_nginx(tmp_path: Path, replicas: list[Served]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = configured(tmp_path, [port], replicas)
    command = [NGINX, "-c", str(configuration), "-e", "stderr", "-g", "daemon off;"]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=60)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            transport = httpx.HTTPTransport(
                retries=8
            )  # until it listens: connecting is tried again after ever longer pauses
            with httpx.Client(transport=transport) as client:
                client.get(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=60)


def client_of(address: str, conversation: str, **options: Any) -> openai.OpenAI:
    headers = {"X-Conversation": conversation}
    given = {"base_url": f"{address}/v1", "api_key": KEY, "max_retries": 0, "default_headers": headers, "timeout": 120}
    return openai.OpenAI(**{**given, **options})


def answered(replica: Served) -> float:
    return replica.metric('fairy2i_requests_total{path="/v1/completions",status="200"}')


def complete(address: str, conversation: str) -> Any:
    return client_of(address, conversation).completions.create(model="talk", prompt=f"{conversation} said", max_tokens=4)


def test_two_replicas(folder: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(serving(fairy2i_runtime.load(folder, threads=1), key=KEY, name="talk", kept_caches=20))
            for _ in range(2)
        ]
        address = stack.enter_context(behind_nginx(tmp_path, replicas))
        names = [f"{chr(97 + n) * 9} {n}" for n in range(20)]
        for _ in range(2):
            found = [complete(address, name) for name in names]
        for (
            answer
        ) in found:  # all but the last token, which is run for its logits: each went to the replica it was at before
            assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1
        counts = [answered(replica) for replica in replicas]
        assert sum(counts) == 40
        assert min(counts) > 0
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "x", api_key="wrong").models.list()
        assert httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404
        assert "<title>Fairy2i chat" in httpx.get(address).text
        with pytest.raises(openai.APIStatusError) as refused:
            client_of(address, "x").completions.create(model="talk", prompt="a" * 1_100_000)
        assert refused.value.status_code == 413

        replicas[0].engine.draining = True  # answers 503: the other one is asked
        for name in names:
            complete(address, name)
        assert answered(replicas[0]) == counts[0]
        assert answered(replicas[1]) == counts[1] + 20


def test_one_that_is_gone_or_full(folder: Path, tmp_path: Path) -> None:
    """A stream's pieces pass at once: the answer they belong to never ends. Who stops reading ends it."""
    model = fairy2i_runtime.load(folder, threads=1)
    session = SlowSession(model.decoder.session, 5)
    model.decoder.session = session
    with ExitStack() as stack:
        slow = stack.enter_context(serving(model, key=KEY, name="talk", parallel=1, queue=0))
        with serving(fairy2i_runtime.load(folder, threads=1), key=KEY, name="talk") as other:
            address = stack.enter_context(behind_nginx(tmp_path, [slow, other]))
            names = iter(f"conversation {n}" for n in range(200))
            while not session.entered.is_set():  # until a conversation falls to the slow one
                stream = client_of(address, next(names)).completions.create(
                    model="talk", prompt="Once", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
                )
                next(stream)
                if slow.metric("fairy2i_answers_running"):
                    assert session.entered.wait(60)
                else:
                    stream.close()
            for name in names:  # until one would be the slow one's, which is full
                complete(address, name)
                if slow.metric('fairy2i_requests_total{path="/v1/completions",status="429"}'):
                    break
            else:
                raise AssertionError("the full one was never asked")
            stream.close()
            for _ in range(5000):
                if slow.metric("fairy2i_answers_running") == 0:
                    break
            assert slow.metric('fairy2i_answers_total{end="interrupted"}') == 1
        for name in ("a", "b", "c", "d", "e", "f"):  # the other one is gone
            complete(address, name)
        assert answered(slow) >= 6
