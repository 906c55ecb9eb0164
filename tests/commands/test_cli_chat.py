"""``fairy2i chat`` and ``generate`` as they are typed at: terminals, histories, bytes that are no UTF-8, template variables."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairy2i_export.commands.tools import main
from fairy2i_runtime import load
from fairy2i_runtime.commands import given_text
from fairy2i_runtime.commands.chat import template_variables
from fairy2i_runtime.commands.terminal.history import ENTRIES, LONGEST, History, history_file
from fairy2i_runtime.engine.threads import processors
from fairy2i_runtime.errors import ChatTemplateError, Fairy2iWarning, OptionError
from fairy2i_runtime.text.chat_template import ChatTemplate
from runtime_models import CHAT_TEMPLATE, FAIRY2I, GREEDY, chat_folder, copy_of_stories, stories_folder

pytestmark = pytest.mark.usefixtures("own_history")
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX terminals and locales")


def run(*arguments: str | bytes, text: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``fairy2i`` with bytes as arguments and on standard input."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    return subprocess.run([*FAIRY2I, *arguments], input=text, env=environment, capture_output=True, timeout=120, check=False)


def lines_of(error: bytes) -> list[str]:
    return error.decode("utf-8", "replace").splitlines()


# --- text that is not UTF-8 ---

UTF8 = {"PYTHONUTF8": "1"}
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
BROKEN = [b"caf\xe9", b"w5 \xff w6", b"\xed\xa0\x80", "Größe".encode("utf-16")[:7], "日本".encode("shift-jis")]


NO_UTF8 = r"error: (PROMPT|standard input|--\w[\w-]+): expected text in UTF-8, found the byte 0x"


@posix
@pytest.mark.parametrize("locale", [UTF8, ASCII], ids=["utf8", "ascii"])
@pytest.mark.parametrize("broken", BROKEN)
def test_bytes_that_are_no_utf8_are_one_message(broken: bytes, locale: dict[str, str]) -> None:
    folder = str(stories_folder())
    calls = [["generate", folder, "-", "--max-new-tokens=2"]]
    if b"\0" not in broken:  # no argument can hold it
        calls += [["generate", folder, broken, "--max-new-tokens=2"]]
    for arguments in calls:
        done = run(*arguments, text=broken, **locale)
        assert (done.returncode, done.stdout) == (2, b""), arguments
        assert len(lines_of(done.stderr)) == 1
        assert re.search(NO_UTF8, lines_of(done.stderr)[0])


OPTIONS = (["generate", "--stop"], ["chat", "--system"], ["chat", "--stop"], ["chat", "--template-variable"])


@posix
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_bytes_of_options_that_are_no_utf8(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """In this process with the texts that Python makes of the arguments in either locale; one of them in a process."""
    command, option = options
    arguments = [command, str(stories_folder()), *["fine"] * (command == "generate"), option]
    value = b"x=" * (option == "--template-variable") + BROKEN[0]
    done = run(*arguments, value)
    assert (done.returncode, done.stdout, len(lines_of(done.stderr))) == (2, b"", 1)
    assert re.search(NO_UTF8, lines_of(done.stderr)[0])
    for broken in (broken for broken in BROKEN if b"\0" not in broken):
        for encoding in ("utf-8", "ascii"):
            value = b"x=" * (option == "--template-variable") + broken
            assert main([*arguments, value.decode(encoding, "surrogateescape")]) == 2
            out, err = capfd.readouterr()
            assert (out, len(err.splitlines())) == ("", 1)
            assert re.search(NO_UTF8, err)


@posix
@pytest.mark.parametrize("text", ["é", "Größe", "日本語", "👍 fine"])
def test_utf8_is_understood_in_a_locale_that_does_not_know_it(text: str) -> None:
    folder, encoded = str(stories_folder()), text.encode()
    expected = load(stories_folder()).generate(text, max_new_tokens=8).text
    for arguments, given in ((["generate", folder, encoded], b""), (["generate", folder, "-"], encoded)):
        for locale in (UTF8, ASCII):
            done = run(*arguments, "--max-new-tokens=8", text=given, **locale)
            assert (done.returncode, done.stderr) == (0, b"")
            shown = expected if locale is UTF8 else expected.encode("ascii", "replace").decode()
            assert done.stdout.decode() == shown + "\n"


@posix
@pytest.mark.parametrize("locale", [UTF8, ASCII], ids=["utf8", "ascii"])
@pytest.mark.parametrize("broken", BROKEN[:3])
def test_a_chat_goes_on_after_a_line_that_is_no_utf8(chatty: Path, broken: bytes, locale: dict[str, str]) -> None:
    done = run("chat", str(chatty), "--max-new-tokens=6", *GREEDY, text=broken + b"\nAnd dog?\n", **locale)
    assert done.returncode == 0
    talk = load(chatty).conversation()
    replaced = re.sub("[\udc80-\udcff]", "�", broken.decode("utf-8", "surrogateescape"))
    answers = [talk.ask(line, max_new_tokens=6).text for line in (replaced, "And dog?")]
    if locale is UTF8:
        assert done.stdout.decode() == "\n".join([*answers, ""])
    else:
        assert done.stdout.count(b"\n") == 2


def test_what_was_meant_by_bytes_of_another_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    escaped = "Größe 日本".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert given_text.argument("PROMPT", escaped) == "Größe 日本"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("caf\xe9\r\n".encode("latin-1")), encoding="latin-1"))
    assert given_text.standard_input() == "café\n"  # a terminal that speaks Latin-1
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OptionError, match="closed"):
        given_text.standard_input()


# --- variables of chat templates ---

VARIED = (
    CHAT_TEMPLATE
    + """
{%- if enable_thinking is defined and not enable_thinking %} quietly{% endif %}
{%- for tool in tools or [] %} {{ tool.name }}{% endfor %}"""
)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of_stories(tmp_path_factory.mktemp("varied") / "model")
    (folder / "chat_template.jinja").write_text(VARIED)
    return folder


TALK = [{"role": "user", "content": "Hello cat."}]


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        (["enable_thinking=false"], {"enable_thinking": False}),
        (["enable_thinking=False"], {"enable_thinking": False}),
        (['tools=[{"name": "ball"}, {"name": "bat"}]'], {"tools": [{"name": "ball"}, {"name": "bat"}]}),
        (["enable_thinking=true", "tools=[]"], {"enable_thinking": True, "tools": []}),
        ([], {}),
    ],
)
def test_variables_reach_the_template(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    varied: Path,
    given: list[str],
    variables: dict[str, Any],
) -> None:
    model = load(varied)
    text = model.chat_template.render(TALK, **variables)
    assert ("quietly" in text, "ball" in text) == (variables.get("enable_thinking") is False, bool(variables.get("tools")))
    expected = model.generate(model.tokenizer.encode(text, add_special_tokens=False), max_new_tokens=10).token_ids
    assert model.chat(TALK, template_variables=variables, max_new_tokens=10).token_ids == expected
    talk = model.conversation(template_variables=variables)
    result = talk.ask(TALK[0]["content"], max_new_tokens=10)
    assert result.token_ids == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello cat.\n"))
    options = [part for entry in given for part in ("--template-variable", entry)]
    assert main(["chat", str(varied), *options, "--max-new-tokens", "10", *GREEDY]) == 0
    assert capsys.readouterr().out == result.text + "\n"


def test_variables_leave_the_cache_its_beginning(varied: Path) -> None:
    model = load(varied)
    talk = model.conversation("Be kind.", template_variables={"enable_thinking": False, "tools": [{"name": "ball"}]})
    plain = model.conversation("Be kind.")
    for text in ("Hello cat.", "And dog?", "What then?"):
        with_variables = talk.ask(text, max_new_tokens=10)
        without = plain.ask(text, max_new_tokens=10)
        assert (
            with_variables.token_ids
            == model.chat(talk.messages[:-1], template_variables=talk.template_variables, max_new_tokens=10).token_ids
        )
    assert with_variables.timings.cached_tokens > 20
    assert without.timings.cached_tokens > 20


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"enable_thinkng": False}, "knows no 'enable_thinkng'; it takes: enable_thinking, tools$"),
        ({"messages": []}, "'messages' is no variable of the chat template, the conversation sets it"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' .* the conversation sets it"),
        (
            {"bos_token": "", "enable_thinking": True},
            "'bos_token' .* the tokenizer sets it; it takes: enable_thinking, tools$",
        ),
        ({"eos_token": ""}, "'eos_token' .* the tokenizer sets it"),  # this template asks for none
        ({"strftime_now": "x"}, "'strftime_now' .* the template language sets it"),
        ({"": 1}, "knows no ''"),
        ({3: False}, "expected names and values"),
        (["enable_thinking"], "expected names and values"),
    ],
)
def test_unknown_variables_are_refused(varied: Path, variables: Any, words: str) -> None:
    model = load(varied)
    for call in (model.conversation, lambda **o: model.chat(TALK, **o)):
        with pytest.raises(OptionError, match=f"^template_variables: .*{words}"):
            call(template_variables=variables)
    with pytest.raises(OptionError, match="no chat template"):
        load(stories_folder()).conversation(template_variables={"enable_thinking": False})


def test_variables_of_templates() -> None:
    def known(source: str) -> frozenset[str]:
        return ChatTemplate(source, {}).variables

    assert known("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}") == {"tools"}
    assert known("{% set day = day | default('today') %}{{ day }}{{ strftime_now('%d') }}") == {"day"}
    assert known("{% macro f(x) %}{{ deep }}{{ x }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}") == {"deep"}
    assert known("{{ raise_exception('no') }}{% set n = namespace(a=1) %}{{ n.a }}") == frozenset()
    assert ChatTemplate("{{ bos_token }}{{ eos_token }}", {"bos_token": "<s>"}).variables == {"eos_token"}
    with pytest.raises(ChatTemplateError, match=r"^here: tool_use: syntax error in line 1"):
        _ = ChatTemplate("{{ a }}", {}, origin="here", tool_use="{% if %}").variables


def test_a_template_for_tools_has_variables_of_its_own(tmp_path: Path) -> None:
    """``tools`` chooses it, also where neither template asks for them; the text is that of transformers."""
    transformers = pytest.importorskip("transformers")
    folder = copy_of_stories(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}{{ ' quietly' if not loud }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        "{{ messages[-1].content }} with {{ kind | tojson }}"
    )
    model, theirs = load(folder), transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert model.chat_template.variables == {"tools", "loud", "kind"}
    tools = [{"name": "ball"}]
    texts = set()
    for variables in ({}, {"loud": True}, {"tools": tools, "kind": ["a", "ä"]}, {"tools": [], "kind": None, "loud": True}):
        text = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True, **variables)
        expected = model.generate(model.tokenizer.encode(text, add_special_tokens=False), max_new_tokens=10).token_ids
        assert model.chat(TALK, template_variables=variables, max_new_tokens=10).token_ids == expected
        texts.add(text)
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a=true", True), ("a=True", True), ("a=False", False), ("a=None", None), ("a=null", None), ("a=3", 3), ("a=1.5", 1.5),
        ('a="x"', "x"), ("a=low", "low"), ("a=", ""), ("a=b=c", "b=c"),
        ('a={"b": [1]}', {"b": [1]}), ("a=26 Jul 2024", "26 Jul 2024"), ("a=NaN", "NaN"), ("a=-Infinity", "-Infinity"),
    ],
)  # fmt: skip
def test_values_are_json_or_text(given: str, expected: Any) -> None:
    assert template_variables([given]) == {"a": expected}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["thinking"], "expected NAME=JSON"), (["=3"], "expected NAME=JSON"), (["a b=3"], "expected NAME=JSON"),
        (["a=[1,"], "a: expected JSON, got '\\[1,'"), (["a={b: 1}"], "a: expected JSON"), (['a="x'], "a: expected JSON"),
        (["a=[NaN]"], "a: expected JSON, got .*NaN is no JSON"),
        (["a=" + "[" * 100_000], "a: expected JSON"), (["a=1", "a=2"], "a was given twice"),
    ],
)  # fmt: skip
def test_values_that_are_neither(given: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        template_variables(given)


def test_a_template_that_fails_with_a_variable_is_explained(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ 1 / n }}")
    with pytest.raises(ChatTemplateError, match="division by zero"):
        load(folder).chat(TALK, template_variables={"n": 0})


# --- sampling of a chat ---


@pytest.mark.parametrize(
    ("config", "options", "same_as", "said"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, [], {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
         "temperature 0.7, top-k 50, top-p 0.9 (generation_config.json)"),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.3}, ["--top-k=5"],
         {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3},
         "temperature 0.7, repetition penalty 1.3 (generation_config.json); top-k 5 (option)"),
        ({"do_sample": True, "temperature": 0.7}, ["--temperature=0"], {"temperature": 0},
         "the most likely token (option)"),
        ({"do_sample": False, "repetition_penalty": 1.2}, [], {"repetition_penalty": 1.2},
         "the most likely token, repetition penalty 1.2 (generation_config.json)"),
        ({"do_sample": False}, [], {"repetition_penalty": 1.1},
         "the most likely token (generation_config.json); repetition penalty 1.1 (default)"),
        ({}, list(GREEDY), {}, "the most likely token (option)"),
        ({}, [], {"temperature": 0.4, "top_p": 0.9, "repetition_penalty": 1.1},
         "temperature 0.4, top-p 0.9, repetition penalty 1.1 (default)"),
        ({"repetition_penalty": 1.2}, ["--temperature=0.5"], {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2},
         "temperature 0.5 (option); top-p 0.9 (default); repetition penalty 1.2 (generation_config.json)"),
    ],
)  # fmt: skip
def test_a_chat_samples_as_the_model_recommends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    config: dict[str, Any], options: list[str], same_as: dict[str, Any], said: str,
) -> None:  # fmt: skip
    folder = chat_folder(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], **config}))
    expected = load(folder).conversation().ask("Hello cat.", max_new_tokens=25, seed=4, **same_as).text
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello cat.\n"))
    assert main(["chat", str(folder), "--max-new-tokens=25", "--seed=4", *options]) == 0
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert said in err.splitlines()


def test_nonsense_of_the_model_is_told_and_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = chat_folder(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": -3, "top_k": 9}')
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello cat.\n"))
    assert main(["chat", str(folder), "--max-new-tokens=5"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fairy2i: warning: .*: temperature: expected .*, found -3: it is ignored", err[0])
    assert "temperature 1, top-k 9 (generation_config.json)" in err


def test_too_many_threads_are_warned_of_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder, threads = str(stories_folder()), str(processors() + 1)
    text = stories_folder() / "README.md"
    for arguments in (["generate", folder, "x", "--max-new-tokens=1"], ["ppl", folder, "--text", str(text), "--tokens=40"]):
        assert main([*arguments, "--threads", threads]) == 0
        err = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert len(err) == 1
        assert re.match(rf"fairy2i: warning: {threads} threads on {processors()} processor", err[0])
    done = run("bench", folder, "--prompt-tokens=4", "--new-tokens=2", "--repeat=1", "--threads", threads)
    assert done.returncode == 0
    assert len([line for line in lines_of(done.stderr) if "threads on" in line]) == 1
    assert main(["generate", folder, "x", "--max-new-tokens=1", "--threads", str(processors())]) == 0
    assert capsys.readouterr().err == ""


# --- several lines, history, terminals ---


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ('"""\nHello cat.\n\nAnd dog?\n"""\n', ["Hello cat.\n\nAnd dog?"]),
        ('"""Hello cat.\nAnd dog?"""\nWhat then?\n', ["Hello cat.\nAnd dog?", "What then?"]),
        ('"""Hello cat."""\n', ["Hello cat."]),
        ('"""\n  /reset\n"""\nHello\n', ["Hello"]),  # a command all the same
        ('"""\n/reset\nis a command\n"""\n', ["/reset\nis a command"]),
        ('"""\nHello cat.\nAnd dog?', ["Hello cat.\nAnd dog?"]),  # the end of input ends it
        ('"""\n"""\nHello\n', ["Hello"]),
    ],
)
def test_texts_of_several_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chatty: Path, typed: str, texts: list[str]
) -> None:
    talk = load(chatty).conversation()
    answers = [talk.ask(text, max_new_tokens=6).text for text in texts]
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", str(chatty), "--max-new-tokens=6", *GREEDY]) == 0
    assert capsys.readouterr().out == "\n".join([*answers, ""])


def test_a_history_keeps_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "history"
    entries = ["Hello cat.", "two\nlines", "日本語 👍", '"quoted" \\ back', "\ttab"]
    for entry in entries:
        History(path).add(entry)
    for not_kept in (" private", "x" * (LONGEST + 1), "\x1b[2J", "a\rb", "\udcff"):
        History(path).add(not_kept)
    assert History(path).read() == entries
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_history_has_a_limited_size(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    for number in range(2 * ENTRIES + 10):
        history.add(f"line {number}")
    expected = [f"line {number}" for number in range(ENTRIES + 10, 2 * ENTRIES + 10)]
    assert history.read() == expected
    assert len(history.path.read_text().splitlines()) == ENTRIES
    assert history.read() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["history"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"not json\n", b"[1]\n{}\n3\n", b"[" * 200_000, b'"\\u001b[2J"\n', b'"\\ud800"\n']
)
def test_a_damaged_history_is_none(tmp_path: Path, content: bytes) -> None:
    history = History(tmp_path / "history")
    history.path.write_bytes(content + b'\n"kept"\n')
    assert history.read() == ["kept"]


@posix
def test_places_where_no_history_can_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "file" / "below", Path("/proc/none/history")):
        History(path).add("Hello cat.")
        assert History(path).read() == []


def test_where_the_history_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAIRY2I_HISTORY", str(tmp_path / "mine"))
    assert history_file() == tmp_path / "mine"
    monkeypatch.setenv("FAIRY2I_HISTORY", "")
    assert history_file() is None
    monkeypatch.setenv("FAIRY2I_HISTORY", str(tmp_path))
    with pytest.warns(Fairy2iWarning, match="FAIRY2I_HISTORY: expected the name of a file, found the folder"):
        assert history_file() is None
    monkeypatch.delenv("FAIRY2I_HISTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "fairy2i" / "chat_history"


def test_what_is_piped_is_no_history(chatty: Path, tmp_path: Path) -> None:
    assert run("chat", str(chatty), "--max-new-tokens=2", text=b"Hello cat.\n").returncode == 0
    assert not (tmp_path / "history").exists()
