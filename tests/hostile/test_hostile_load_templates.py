"""Chat templates that take for ever, take all memory, or break the language: each ends soon with a text or one clear line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import in_threads
from fairy2i_runtime.errors import ChatTemplateError
from fairy2i_runtime.text.chat_template import MOST_BYTES, TEMPLATE_FILE, ChatTemplate
from fairy2i_runtime.text.sandbox import process

TALK = [{"role": "user", "content": "hi"}]
BOMBS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a filter over nested ranges": "{% for a in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "doubled text": "{% set n=namespace(l='a') %}{% for i in range(60) %}{% set n.l = n.l ~ n.l %}{% endfor %}{{ n.l }}",
    "doubled list": "{% set n=namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}{{ n.l }}",
    "a constant product": "{{ 'x' * 100000000000 }}",
    "a product": "{% set n = messages|length * 10000000000 %}{{ 'x' * n }}",
    "a width of %": "{{ '%0999999999d' % 1 }}",
    "a width of format": "{{ '{:>9999999999}'.format(1) }}",
    "center": "{{ 'a'.center(9999999999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "replace": "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "join": "{{ range(99999)|join('x' * 1000000) }}",
    "indent": "{{ 'a'|indent(width=9999999999, first=true) }}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "batch": "{{ [1]|batch(9999999999, 0)|list|length }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "tojson": "{{ messages|tojson(indent=999999999) }}",
    "a long text": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
}
BROKEN = {
    "macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursive loop": "{% for x in [[[]]] recursive %}{{ loop([x]) }}{% endfor %}",
    "deep list": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "deep sum": "{{ 1" + " + 1" * 20_000 + " }}",
    "deep for": "{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30,
    "half a character": "{{ '\\ud800' }}",
    "a long number": "{{ " + "9" * 6000 + " }}",
    "break": "{% break %}",
    "control characters": "{{ raise_exception('a\\nb\\x1b[31m\u202e') }}",
    "a name with control characters": "{{ 1|first\x1b }}",
    "a huge template": "x" * (MOST_BYTES + 1),
    "an error of 40 MB": "{{ raise_exception('x' * 40000000) }}",
}


def refusal(source: str) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(source, {}, origin="here").render(TALK)
    return str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end(name: str) -> None:
    message = refusal(BOMBS[name])
    assert message.startswith("here: ")
    assert len(message) < 1000


@pytest.mark.parametrize("name", BROKEN)
def test_broken_templates_are_one_printable_line(name: str) -> None:
    message = refusal(BROKEN[name])
    assert message.isprintable()
    assert len(message) < 1000


def test_a_process_that_died_is_replaced() -> None:
    for source in (BOMBS["nested ranges"], BOMBS["doubled text"]):
        refusal(source)
        assert ChatTemplate("{{ messages[0].content }}!", {}).render(TALK) == "hi!"


def test_memory_of_this_process_does_not_grow() -> None:
    script = (
        "import resource, sys; from fairy2i_runtime.text.chat_template import ChatTemplate\n"
        "def tried(source):\n"
        "    try: ChatTemplate(source, {}).render([])\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "tried('x'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for source in sys.argv[1:]: tried(source)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)\n"
    )
    sources = [BOMBS["doubled text"], BOMBS["a constant product"], BOMBS["a long text"]]
    ran = subprocess.run([sys.executable, "-c", script, *sources], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["ChatTemplateError"] * 3 + ["True"], ran.stderr


def test_several_threads_may_render() -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        for _ in range(10):
            found[number] = ChatTemplate("{{ messages[0].content }}" + str(number), {}).render(TALK)

    in_threads(4, work)
    assert found == {number: f"hi{number}" for number in range(4)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_copy_of_the_process_starts_one_of_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render(TALK) == "hi"
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(TALK) == "hi" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(TALK) == "hi"


def test_interrupting_the_wait_leaves_nothing_behind() -> None:
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers here")
    assert ChatTemplate("a", {}).render(TALK) == "a"

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            ChatTemplate(BOMBS["nested ranges"], {}).render(TALK)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ChatTemplate("b", {}).render(TALK) == "b"


def test_where_no_process_can_be_started_the_sandbox_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not process.is_apart()
    assert ChatTemplate("{{ messages[0].content }}", {}).render(TALK) == "hi"
    assert "atomic" in refusal("{{ raise_exception('atomic') }}")


def test_a_template_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).symlink_to("/dev/zero")
    template = ChatTemplate.load(tmp_path, {})
    assert template is not None
    assert "expected a chat template in a regular file, found a device" in (template.problem or "")
