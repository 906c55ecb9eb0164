"""The command ``fairy2i`` and examples/chat.py, as a user runs them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, heed_interrupts
from fairy2i_export.commands.tools import main
from fairy2i_runtime import load
from fairy2i_runtime.commands.terminal.chat_loop import chat_loop
from fairy2i_runtime.commands.terminal.line_editor import LineEditor
from runtime_models import FAIRY2I, GREEDY, FailingSession, copy_of_stories, stories_folder

PROMPT = "Once upon a time"


def one_message(capsys) -> str:
    """What was printed to stderr, which must be one message and no traceback; nothing may be on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_generate_prints_what_the_runtime_generates(capsys):
    expected = load(stories_folder()).generate(PROMPT, max_new_tokens=30).text
    assert main(["generate", str(stories_folder()), PROMPT, "--max-new-tokens", "30"]) == 0
    assert capsys.readouterr() == (expected + "\n", "")
    assert main(["generate", str(stories_folder()), PROMPT, "--max-new-tokens", "30", "--no-stream", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert re.search(r"prompt: \d+ tokens, [\d.]+ tokens/s; decode: 29 tokens, [\d.]+ tokens/s; ended by: length", err)


def test_generate_passes_every_option_on(capsys):
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3, "max_new_tokens": 40}
    model = load(stories_folder(), kernel="exact", isa="scalar", threads=1, context_length=64)
    full = model.generate(PROMPT, **options).text
    expected = model.generate(PROMPT, **options, stop=[full[20:24], full[30:32]]).text
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    arguments += [f"--stop={full[20:24]}", f"--stop={full[30:32]}"]
    arguments += ["--kernel=exact", "--isa=scalar", "--threads=1", "--context-length=64"]
    assert main(["generate", str(stories_folder()), PROMPT, *arguments]) == 0
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("config", "options", "same_as", "said"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, ["--top-k=5"],
         {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, "temperature 0.7, top-p 0.9 (generation_config.json); top-k 5 (option)"),
        ({"do_sample": True}, ["--temperature=0"], {}, "the most likely token (option)"),
        ({}, [], {}, "the most likely token (default)"),
        (None, [], {}, "the most likely token (default)"),
    ],
)  # fmt: skip
def test_generate_samples_as_the_model_recommends_if_asked(capsys, tmp_path, config, options, same_as, said):
    folder = copy_of_stories(tmp_path / "model")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "generation_config.json").write_text(json.dumps(config))
    arguments = ["generate", str(folder), PROMPT, "--max-new-tokens=20", "--seed=3"]
    assert main([*arguments, "--recommended", *options]) == 0
    expected = load(folder).generate(PROMPT, max_new_tokens=20, seed=3, **same_as).text
    assert capsys.readouterr() == (expected + "\n", said + "\n")
    assert main(arguments) == 0
    assert capsys.readouterr() == (load(folder).generate(PROMPT, max_new_tokens=20).text + "\n", "")


def test_generate_reads_the_prompt_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert main(["generate", str(stories_folder()), "-", "--max-new-tokens=5"]) == 0
    assert capsys.readouterr().out == load(stories_folder()).generate(PROMPT, max_new_tokens=5).text + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "Missing argument 'DIR'"),
        (["generate", "{}"], "Missing argument 'PROMPT'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "{}", "x", "--nonsense"], "No such option"),
        (["generate", "{}", "x", "--top-k", "1.5"], "--top-k"),
        (["generate", "{}", "x", "--top-p", "2"], "top_p: expected"),
        (["generate", "{}", "x", "--temperature", "-1"], "temperature: expected"),
        (["generate", "{}", "x", "--max-new-tokens", "0"], "max_new_tokens: expected"),
        (["generate", "{}", "x", "--seed", "-1"], "seed: expected"),
        (["generate", "{}", "x", "--stop", ""], "stop: expected"),
        (["generate", "{}", "x", "--threads", "0"], "threads: expected"),
        (["generate", "{}", "x", "--kernel", "nope"], "unknown kernel"),
        (["generate", "{}", "x", "--isa", "nope"], "nope"),
        (["generate", "{}", "x", "--context-length", "513"], "context_length: expected 1 to 512"),
        (["generate", "{}", "word " * 600], "the context holds 512"),
        (["generate", "/absent", "x"], "/absent does not exist"),
        (["chat", "/absent"], "/absent does not exist"),
        (["chat", "{}", "--top-p", "0"], "top_p: expected"),
        (["info", "/absent"], "/absent does not exist"),
        (["info", "{}", "--context-length", "0"], "context_length: expected 1 to 512"),
        (["verify", "/absent"], "/absent"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_2(capsys, arguments, message):
    assert main([argument.format(stories_folder()) for argument in arguments]) == 2
    assert message in one_message(capsys)


def test_damaged_folders_give_one_message(capsys, tmp_path):
    folder = copy_of_stories(tmp_path / "model")
    os.truncate(folder / "model.onnx.data", 1000)
    assert main(["generate", str(folder), "x"]) == 2
    assert "export the model again" in one_message(capsys)
    (folder / "genai_config.json").write_text("{")
    assert main(["generate", str(folder), "x"]) == 2
    assert "genai_config.json is not valid JSON" in one_message(capsys)


def test_a_wrong_kernel_in_the_environment_gives_one_message(capsys, monkeypatch):
    monkeypatch.setenv("FAIRY2I_KERNEL", "nope")
    assert main(["generate", str(stories_folder()), "x"]) == 2
    assert "FAIRY2I_KERNEL" in one_message(capsys)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_and_option(capsys, flag):
    assert main([flag]) == 0
    out = capsys.readouterr().out
    for command in ("chat", "generate", "info", "ppl", "bench", "verify", "inspect", "report"):
        assert command in out
        assert main([command, flag]) == 0
    assert "lm-eval" in out
    assert "--repetition-penalty" in capsys.readouterr().out
    assert main([]) == 2  # nothing was asked for
    assert "generate" in "".join(capsys.readouterr())


def test_without_lm_eval_only_its_command_is_missed(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fairy2i_export.check.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["--help"]) == 0
    assert "lm-eval" in capsys.readouterr().out
    assert main(["lm-eval", "--model", "fairy2i"]) == 2
    assert "pip install '.[eval]' in a checkout" in one_message(capsys)


def test_info_on_the_installation(capsys):
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["installation"]
    assert Path(report["library"]["path"]).is_file()
    assert sum(kernel["is_default"] for kernel in report["library"]["kernels"] if kernel["family"] == "lut") == 1
    assert main(["info"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_info_on_a_model(capsys):
    assert main(["info", str(stories_folder()), "--json", "--context-length=100"]) == 0
    report = json.loads(capsys.readouterr().out)["model"]
    assert report["metadata"]["fairy2i.format_version"] == "1"
    assert (report["layers"], report["kv_heads"], report["head_size"], report["vocab_size"]) == (5, 4, 8, 512)
    memory = report["memory"]
    assert memory["kv_cache"] == 2 * 5 * 4 * 8 * 4 * 100
    assert memory["weights_mapped"] == sum(
        (stories_folder() / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )
    assert main(["info", str(stories_folder())]) == 0
    out = capsys.readouterr().out
    assert re.search(r"stages +2\n", out)
    assert "base model" in out


def test_info_without_a_usable_library_reports_it(capsys, monkeypatch, tmp_path):
    from fairy2i_runtime import core

    core._library.cache_clear()
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "absent.so"))
    assert main(["info", str(stories_folder())]) == 0
    out = capsys.readouterr().out
    assert "not usable" in out
    assert "absent.so" in out
    assert "vocabulary" in out


def feed(monkeypatch, *lines: str | type[BaseException]) -> None:
    """Let ``input`` give these lines, raise these exceptions, and then the end of input."""
    entries = iter(lines)

    def fake_input(_prompt: str = "") -> str:
        entry = next(entries, EOFError)
        if isinstance(entry, str):
            return entry
        raise entry

    monkeypatch.setattr("builtins.input", fake_input)


def test_chat_answers_turns_and_knows_its_commands(capsys, monkeypatch, chatty):
    talk = load(chatty).conversation("Be kind.")
    answers = [talk.ask(text, max_new_tokens=12).text for text in ("Hello cat.", "And dog?")]
    feed(monkeypatch, "Hello cat.", "And dog?", "/help", "/nonsense", "", "/reset", "Hello cat.", "/exit", "never reached")
    assert main(["chat", str(chatty), "--system", "Be kind.", "--max-new-tokens", "12", *GREEDY]) == 0
    out, err = capsys.readouterr()
    assert out == "\n".join([*answers, answers[0], ""])
    assert "/reset  forget" in err
    assert "unknown command /nonsense" in err
    assert re.search(r"prompt: \d+ tokens .*tokens/s; decode: 33 tokens, [\d.]+ tokens/s\n$", err)


def test_chat_with_a_base_model_says_so_and_completes(capsys, monkeypatch):
    feed(monkeypatch, PROMPT)
    assert main(["chat", str(stories_folder()), "--max-new-tokens", "10", "--system", "x", *GREEDY]) == 0
    out, err = capsys.readouterr()
    assert out == load(stories_folder()).generate(PROMPT, max_new_tokens=10).text + "\n"
    assert "no chat template" in err
    assert "it is ignored" in err


def test_chat_goes_on_after_a_question_that_does_not_fit(capsys, monkeypatch, chatty):
    feed(monkeypatch, "cat " * 600, "Hello cat.")
    assert main(["chat", str(chatty), "--max-new-tokens", "5", *GREEDY]) == 0
    out, err = capsys.readouterr()
    assert "/reset begins anew" in err
    assert out == load(chatty).conversation().ask("Hello cat.", max_new_tokens=5).text + "\n"


def test_chat_goes_on_after_an_answer_that_fails(capsys, monkeypatch, chatty):
    model = load(chatty)
    whole = model.conversation().ask("Hello cat.", max_new_tokens=30).text
    model.decoder.session = FailingSession(model.decoder.session, 8)
    feed(monkeypatch, "Hello cat.", "Hello cat.")
    chat_loop(model.conversation(), {"max_new_tokens": 30}, LineEditor(None))
    out, err = capsys.readouterr()
    first, _, second = out.partition("\n")
    assert whole.startswith(first)
    assert 0 < len(first) < len(whole)
    assert second == whole + "\n"  # as if it had been asked for the first time
    assert re.search(r"gave up .*bad allocation.* not remembered: ask again, or /reset begins anew\n", err)


def test_bugs_end_the_chat_with_a_line_of_their_own(capsys, monkeypatch, chatty):
    model = load(chatty)
    decode, calls = model.tokenizer.decode, iter(range(20))
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids: decode(ids) if next(calls, 0) < 19 else 1 / 0)
    feed(monkeypatch, "Hello cat.", "never reached")
    with pytest.raises(ZeroDivisionError):
        chat_loop(model.conversation(), {"max_new_tokens": 30}, LineEditor(None))
    assert capsys.readouterr().out.count("\n") == 1


class InterruptedOutput(io.StringIO):
    """Standard output on which Ctrl-C arrives at the third piece of text."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes == 5:  # print writes the piece and its end
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys, monkeypatch, chatty):
    model = load(chatty)
    whole = model.conversation().ask("Hello cat.", max_new_tokens=30).text
    feed(monkeypatch, KeyboardInterrupt, "Hello cat.", "And dog?")
    output = InterruptedOutput()
    monkeypatch.setattr("sys.stdout", output)
    chat_loop(model.conversation(), {"max_new_tokens": 30}, LineEditor(None))
    err = capsys.readouterr().err
    assert "/exit or Ctrl-D ends the program" in err
    assert "stopped\n" in err
    first, _, second = output.getvalue().lstrip("\n").partition("\n")
    assert whole.startswith(first)
    assert len(first) < len(whole)
    assert second


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUNBUFFERED": "1"}


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")
@pytest.mark.parametrize(
    "arguments", [["generate", "{}", PROMPT, "--max-new-tokens=50"], ["info", "{}"], ["info", "--help"]]
)
def test_a_closed_pipe_ends_quietly(arguments):
    command = [*FAIRY2I, *(argument.format(stories_folder()) for argument in arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")
def test_ctrl_c_ends_generate_without_traceback():
    command = [*FAIRY2I, "generate", str(stories_folder()), "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment(), preexec_fn=heed_interrupts) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        maps = Path(f"/proc/{process.pid}/maps")
        deadline = time.monotonic() + 60
        while maps.exists() and b"libfairy2i_ops" not in maps.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)  # until the model is loaded and the prompt is waited for
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        assert process.wait(60) == 130
        assert error == b"interrupted: nothing was written\n"


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("fairy2i_runtime.model.load", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "x", "y"])


def run_example(folder: Path, *arguments: str, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples/chat.py"), str(folder), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def test_the_example_talks_in_turns(chatty):
    done = run_example(chatty, "--threads", "2", "--max-new-tokens", "12", text="Hello cat.\nAnd dog?\n")
    talk = load(chatty).conversation()
    assert done.returncode == 0, done.stderr
    for question in ("Hello cat.", "And dog?"):
        assert talk.ask(question, max_new_tokens=12).text in done.stdout
    assert re.search(r"decode: 22 tokens, [\d.]+ tokens/s\n$", done.stdout)


def test_the_example_explains_a_mistake_in_one_message():
    done = run_example(Path("/absent"), text="")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "/absent does not exist" in done.stderr


def test_the_example_uses_the_public_interface_only():
    source = (ROOT / "examples/chat.py").read_text()
    assert re.findall(r"^(?:from|import) (fairy2i\S*)", source, re.MULTILINE) == ["fairy2i_runtime"]
    assert set(re.findall(r"fairy2i_runtime\.(\w+)", source)) <= set(sys.modules["fairy2i_runtime"].__all__)
    assert len(source.splitlines()) < 100
