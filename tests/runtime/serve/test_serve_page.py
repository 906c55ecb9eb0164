"""The chat page in a real browser. Skipped where there is none, unless FAIRY2I_NEEDS_BROWSER is set, as .ci/serve does."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fairy2i_runtime
from runtime_models import SlowSession, chat_folder
from serving import Served, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
if not os.environ.get("FAIRY2I_NEEDS_BROWSER"):
    pytestmark = pytest.mark.skipif(
        CHROMIUM is None or find_spec("playwright") is None, reason="needs chromium, and playwright (.ci/serve has them)"
    )
QUESTION = "Once upon a time"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a fresh profile that asks no other server; what scripts complain of fails the test."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    complaints: list[str] = []
    hosts: set[str] = set()
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: hosts.add(request.url.split("/")[2].partition(":")[0]))
    yield opened
    context.close()
    assert complaints == []
    assert hosts == {"127.0.0.1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("served") / "talk")


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(fairy2i_runtime.load(folder, threads=1), max_tokens=40) as found:
        yield found


def ask(page: Any, text: str, *, end: bool = True) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    if end:
        page.wait_for_selector("#send:visible")


def shown(page: Any, role: str) -> list[str]:
    return page.locator(f".message.{role}").evaluate_all("boxes => boxes.map(box => box.textContent)")


def test_a_conversation(page: Any, served: Served, folder: Path) -> None:
    page.goto(served.url)
    page.locator("#model", has_text="talk").wait_for()
    ask(page, QUESTION)
    assert "cut off" in page.text_content("#status")
    ask(page, "And then?")
    talk = fairy2i_runtime.load(folder, threads=1).conversation()
    expected = [talk.ask(text, max_new_tokens=40).text for text in (QUESTION, "And then?")]
    assert shown(page, "assistant") == expected
    assert shown(page, "user") == [QUESTION, "And then?"]
    assert served.metric('fairy2i_cache_lookups_total{result="hit"}') == 1
    page.click("#new")
    assert shown(page, "assistant") == []
    page.click("#options summary")
    page.fill("#system", "Be brief.")
    page.fill("#max-tokens", "5")
    ask(page, QUESTION)
    brief = fairy2i_runtime.load(folder, threads=1).conversation("Be brief.").ask(QUESTION, max_new_tokens=5)
    assert shown(page, "assistant") == [brief.text]


def test_text_is_never_markup(page: Any, served: Served) -> None:
    evil = "<img src=x onerror=\"document.title='evil'\"><script>document.title='evil'</script>&amp;"
    pieces = [{"delta": {"content": evil[:9]}}, {"delta": {"content": evil[9:]}}, {"delta": {}, "finish_reason": "stop"}]
    body = "".join(f"data: {json.dumps({'choices': [piece]})}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.goto(served.url)
    ask(page, evil)
    assert shown(page, "assistant") == shown(page, "user") == [evil]
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Fairy2i chat"
    assert "script-src 'self'" in page.request.get(served.url).headers["content-security-policy"]


def test_the_stop_button(page: Any, folder: Path) -> None:
    model = fairy2i_runtime.load(folder, threads=1)
    session = SlowSession(model.decoder.session, 20)
    model.decoder.session = session
    with serving(model, parallel=1) as served:
        page.goto(served.url)
        ask(page, QUESTION, end=False)
        page.locator(".message.assistant", has_text=re.compile(r"\w\w")).wait_for()  # while it is being written
        assert session.entered.wait(60)
        page.click("#stop")
        page.wait_for_selector("#send:visible")
        assert page.text_content("#status") == "stopped"
        (part,) = shown(page, "assistant")
        ask(page, "And then?")  # the place is free again, and what there was of the answer is part of the conversation
        assert len(shown(page, "assistant")) == 2
        assert part
        assert served.metric('fairy2i_answers_total{end="interrupted"}') == 1


def test_the_key_is_asked_for(page: Any, folder: Path) -> None:
    with serving(fairy2i_runtime.load(folder, threads=1), key="secret-1", max_tokens=5) as served:
        page.goto(served.url)
        page.wait_for_selector("#key-form:visible")
        assert "expected the server's key" in page.text_content("#status")
        page.fill("#key", "secret-1")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-form", state="hidden")
        ask(page, QUESTION)
        assert len(shown(page, "assistant")[0]) > 0


def test_what_the_server_refuses_is_said(page: Any, served: Served) -> None:
    page.goto(served.url)
    ask(page, "a b " * 600)
    assert "do not fit into the context" in page.text_content("#status")
    assert shown(page, "user") == []
    assert page.input_value("#text") == "a b " * 600  # to be shortened and sent again
