"""The command `fairy2i serve`: what it refuses, in one message each, and how signals end it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import yaml

from conftest import ROOT, heed_interrupts
from fairy2i_export.commands.tools import main
from fairy2i_runtime.__main__ import main as runtime_main
from fairy2i_runtime.serve.settings import KEY_VARIABLE
from runtime_models import chat_folder, stories_folder


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def message_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command says instead of serving."""
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_a_package_that_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"starlette", "pydantic"}
    monkeypatch.setattr("fairy2i_runtime.serve.settings.find_spec", lambda name: name if name in there else None)
    line = message_of(capsys, str(stories_folder()))
    assert "needs packages that are not there: uvicorn, prometheus_client" in line
    assert "pip install uvicorn prometheus-client" in line


def test_no_such_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path / "none") in message_of(capsys, str(tmp_path / "none"), "--port", "0")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = message_of(capsys, str(stories_folder()), "--port", str(port))
    assert f"port {port} of '127.0.0.1' is in use by another program: give another one with --port" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_need_a_key(capsys: pytest.CaptureFixture[str], host: str) -> None:
    line = message_of(capsys, str(stories_folder()), "--port", "0", "--host", host)
    assert "can be reached from other machines, and there is no key" in line
    assert KEY_VARIABLE in line


@pytest.mark.parametrize("key", ["", "two words", "schlüssel"])
def test_what_is_no_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    line = message_of(capsys, str(stories_folder()), "--port", "0")
    assert f"{KEY_VARIABLE}: expected" in line
    assert not key or key not in line


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--port", "70000", "port: expected a number from 0 (any free one) to 65535"),
        ("--parallel", "0", "parallel: expected an integer of at least 1"),
        ("--queue", "-1", "queue: expected an integer of at least 0"),
        ("--timeout", "0", "timeout: expected a number of seconds above 0"),
        ("--timeout", "nan", "timeout: expected a number of seconds above 0"),
        ("--max-tokens", "0", "max_tokens: expected an integer of at least 1"),
        ("--name", "", "name: expected a name"),
        ("--name", "two\nlines", "name: expected a name"),
        ("--cache-mb", "-1", "cache_mb: expected an integer of at least 0"),
        ("--kept-caches", "-1", "kept_caches: expected an integer of at least 0"),
        ("--max-body-kb", "0", "max_body_kb: expected an integer of at least 1"),
        ("--host", "no.such.host.invalid", "there is no such address"),
        ("--host", "", "there is no such address"),
        ("--host", "192.0.2.1", "can be reached from other machines"),
        ("--context-length", "0", "context_length"),
    ],
)
def test_what_is_no_value(capsys: pytest.CaptureFixture[str], option: str, value: str, message: str) -> None:
    assert message in message_of(capsys, str(stories_folder()), "--port", "0", option, value)


def test_an_address_that_is_not_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert "is no address of this machine" in message_of(capsys, str(stories_folder()), "--host", "192.0.2.1")


def test_a_damaged_chat_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    assert "chat_template.jinja: syntax error in line 1" in message_of(capsys, str(folder), "--port", "0")


def test_both_programs_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (main, runtime_main):
        assert program(["serve", "--help"]) == 0
        assert KEY_VARIABLE in capsys.readouterr().out


@contextmanager
def started(
    *arguments: str, preexec: Callable[[], object] = heed_interrupts, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own process that is ready, and its address. Killed at the end if it has not ended by itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "fairy2i_export", "serve", *arguments, "--port", "0", "--threads", "1"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        preexec_fn=preexec if os.name == "posix" else None,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r" at (http://\S+) ", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_that_is_ignored_stays_so() -> None:
    """A shell without job control starts what runs beside itself that way."""
    with started(str(stories_folder()), preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as (process, address):
        process.send_signal(signal.SIGINT)
        for _ in range(3):  # a signal is heard between two requests
            assert httpx.get(f"{address}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_when_its_answers_have_ended(number: signal.Signals) -> None:
    with started(str(stories_folder()), "--name", "tales") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="tales", prompt="Once", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        process.send_signal(number)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "stopped serving"
    assert "Traceback" not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def wait_until_closed(address: str) -> None:
    """Until the server at the address takes no new connections."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{address}/health")
        except httpx.TransportError:  # refused, or cut off as the listening socket was closed
            return
    pytest.fail("the server still listens a minute after the signal")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_two_signals_end_it_at_once() -> None:
    with started(str(stories_folder()), "--grace", "1000") as (process, address):
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            # a request that never becomes complete: nothing but the second signal could end the wait for it
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
            )
            connection.sendall(f"{head}\r\n{{".encode())
            while httpx.get(f"{address}/health").status_code != 200:
                pass
            process.send_signal(signal.SIGTERM)
            # two signals that wait together have no order: the system may hand the second one to another thread, which runs first
            wait_until_closed(address)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert "the server is being stopped" in connection.recv(10_000).decode()
    assert "Traceback" not in errors
    assert process.returncode == 128 + signal.SIGTERM  # the first one


def test_a_key_lets_others_in_and_log_lines_hold_no_texts() -> None:
    arguments = (str(stories_folder()), "--host", "0.0.0.0", "--log-requests")
    with started(*arguments, **{KEY_VARIABLE: "secret-1"}) as (process, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{address}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret-1", max_retries=0)
        assert client.completions.create(model="stories", prompt="Once upon", max_tokens=2).choices[0].text
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert '"POST /v1/completions HTTP/1.1" 200' in errors
    assert "Once upon" not in errors
    assert "secret-1" not in errors


def test_the_example_for_kubernetes_says_what_the_command_knows(capsys: pytest.CaptureFixture[str]) -> None:
    documents = list(yaml.safe_load_all((ROOT / "examples" / "serve" / "kubernetes.yaml").read_text(encoding="utf-8")))
    pod = documents[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert main([*container["args"], "--help"]) == 0  # an unknown option would come first
    grace = next(int(given.partition("=")[2]) for given in container["args"] if given.startswith("--grace="))
    assert pod["terminationGracePeriodSeconds"] > grace
    assert container["env"][0]["name"] == KEY_VARIABLE
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths == {"/health/ready", "/health/live"}
