"""examples/cpp: the C++ host gives the text of the Python runtime in onnxruntime-genai, converses, and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fairy2i_runtime
from fairy2i_runtime import genai
from fairy2i_runtime.commands.chat import CHAT_DEFAULTS
from host_programs import (
    cpp_host,
    for_another_processor,
    genai_library,
    onnxruntime_library,
    refused,
    run_host,
    stub_onnxruntime,
    without_memory,
)
from runtime_models import chat_folder, copy_of_stories, edit_config, stories_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of shared libraries")
PROMPT = "Once upon a time"


@pytest.fixture(autouse=True)
def _needs_genai() -> None:
    genai_library()


def told(folder: Path, *options: object, **variables: str) -> str:
    done = run_host(cpp_host(), folder, "--prompt", PROMPT, "--threads", 1, *options, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def expected(**options: object) -> str:
    model = fairy2i_runtime.load(stories_folder(), threads=1, **options)
    return model.generate(PROMPT, max_new_tokens=256).text + "\n"


@pytest.mark.parametrize("kernel", ["exact", "lut"])
def test_the_text_of_the_python_runtime(kernel: str) -> None:
    text = expected(kernel=kernel)
    assert told(stories_folder(), "--greedy", "--kernel", kernel) == text
    assert told(stories_folder(), FAIRY2I_KERNEL=kernel) == text  # the folder recommends no drawing


def test_the_folders_kernel_and_who_comes_before_it(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, "model", "decoder", "session_options", "fairy2i.kernel", value="absent")
    assert 'unknown kernel "absent"' in refused(cpp_host(), folder, "--prompt", PROMPT)
    assert told(folder, FAIRY2I_KERNEL="exact") == expected(kernel="exact")


def test_drawing() -> None:
    options = ("--temperature", 1.5, "--top-k", 100, "--top-p", 0.95, "--max-new-tokens", 30)
    one, again, two = (told(stories_folder(), *options, "--seed", seed) for seed in (1, 1, 2))
    assert one == again != two
    assert told(stories_folder(), "--greedy", "--max-new-tokens", 30) not in (one, two)


SAYS = "generation_config.json"


def conversed(folder: Path, *options: object) -> str:
    """Two answers in a conversation."""
    fixed = ("--max-new-tokens", 25, "--threads", 1, "--kernel", "exact")
    done = run_host(cpp_host(), folder, *fixed, *options, text="Tell me\nAnd then?\n")
    assert done.returncode == 0
    return done.stdout


def recommending(folder: Path, **search: object) -> Path:
    """Change what genai_config.json says of drawing, as an export does."""
    for name, value in search.items():
        edit_config(folder, "search", name, value=value)
    return folder


def test_a_conversation_without_a_recommendation_draws_as_the_chat_of_python(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model")
    drawn = conversed(folder, "--seed", 1)
    same = recommending(chat_folder(tmp_path / "same"), do_sample=True, top_k=0, **CHAT_DEFAULTS)
    assert drawn == conversed(same, "--seed", 1)
    assert drawn not in (conversed(folder, "--seed", 2), conversed(folder, "--greedy"))
    assert conversed(folder, "--seed", 1, "--temperature", 1.5) != drawn
    assert len({conversed(folder) for _ in range(6)}) > 1
    assert conversed(stories_folder(), "--seed", 1) != conversed(
        stories_folder(), "--seed", 2
    )  # as for one without a template
    answers = {seed: told(folder, "--max-new-tokens", 25, "--seed", seed) for seed in (1, 2)}
    assert answers[1] != answers[2]  # an answer, too


def test_what_is_recommended_comes_before_that(tmp_path: Path) -> None:
    folder = recommending(chat_folder(tmp_path / "model"), do_sample=True, temperature=1e-6, top_k=1)
    greedy = conversed(folder, "--greedy")
    assert conversed(folder) == greedy  # drawn as it says, among one token
    folder = chat_folder(tmp_path / "greedy")
    (folder / SAYS).write_text('{"do_sample": false, "repetition_penalty": 1.0}')
    assert conversed(folder) == greedy
    (folder / SAYS).write_text('{"do_sample": false}')
    assert len({conversed(folder) for _ in range(3)}) == 1  # with a penalty, as fairy2i chat has it
    recommending(folder, repetition_penalty=CHAT_DEFAULTS["repetition_penalty"])
    assert conversed(folder, "--greedy") == conversed(recommending(folder, repetition_penalty=1.0))


def test_want_of_memory_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    line = without_memory(cpp_host(), tmp_path, "--prompt", PROMPT)
    assert line.startswith("fairy2i_chat: not enough memory: generator: ")


@pytest.mark.parametrize("context", [None, 512])
def test_a_conversation(context: int | None, tmp_path: Path) -> None:
    """Every question is asked behind all before it, as the template writes them, whatever of it is still in the cache."""
    og = pytest.importorskip("onnxruntime_genai")
    folder = chat_folder(tmp_path / "model")
    tokenizer = og.Tokenizer(genai.load(folder, threads=1))
    model = fairy2i_runtime.load(folder, threads=1, kernel="exact")
    messages: list[dict[str, str]] = []
    for question in ("Hello", "And then?", 'What of "that" \\ there?'):
        messages.append({"role": "user", "content": question})
        ids = [int(token) for token in tokenizer.encode(tokenizer.apply_chat_template(json.dumps(messages)))]
        messages.append({"role": "assistant", "content": model.generate(ids, max_new_tokens=12).text})
    text = "".join(message["content"] + "\n" for message in messages[::2])
    options = () if context is None else ("--context", context)
    done = run_host(cpp_host(), folder, "--max-new-tokens", 12, "--greedy", "--kernel", "exact", *options, text=text)
    assert done.stdout == "".join(f"> {message['content']}\n" for message in messages[1::2]) + "> \n"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_turn_that_does_not_fit_is_none(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model")
    alone = run_host(cpp_host(), folder, "--max-new-tokens", 5, "--greedy", text="Hello\n").stdout
    done = run_host(cpp_host(), folder, "--max-new-tokens", 5, "--greedy", text="Tell me " * 300 + "\nHello\n")
    assert done.stdout == "> " + alone
    assert "tokens leave no room for another in the context of 512" in done.stderr


def test_a_model_without_a_template_continues_every_line() -> None:
    done = run_host(
        cpp_host(), stories_folder(), "--kernel", "exact", "--greedy", text=f"{PROMPT}\n{PROMPT}\n\nnever read\n"
    )
    assert done.stdout == f"> {expected(kernel='exact')}" * 2 + "> "
    assert done.stderr.startswith("This model continues what you write, every line anew: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "Once " * 600), "tokens leave no room for another in the context of 512"),
        (("--prompt", PROMPT, "--context", "513"), "--context: expected 1 to 512 (what the model was built for), got 513"),
        (("--threads", "0"), "--threads: expected an integer from 1 to 1024, got '0'"),
        (("--threads", "1.5"), "got '1.5'"),
        (("--threads", "nan"), "got 'nan'"),
        (("--temperature", "0"), "--temperature: expected a number from 0.000001 to 1000000; --greedy"),
        (("--top-p", "1.1"), "--top-p: expected a number from 0.000001 to 1, got '1.1'"),
        (("--greedy", "--seed", "1"), "--greedy draws nothing"),
        (("--kernel", "nosuch"), 'unknown kernel "nosuch"'),
        (("--prompt",), "--prompt: expected a value behind it"),
        (("--nosuch",), "--nosuch: there is no such option"),
        (("Once upon a time",), "expected one model folder, found also 'Once upon a time'"),
        (("--library", "/absent.so"), "/absent.so: expected the operator library, found: No such file"),
        (("--library", onnxruntime_library()), "found a library without Fairy2i_RegisterCustomOps"),
        (("--onnxruntime", "/absent.so"), "/absent.so: expected onnxruntime's shared library, found: No such file"),
        (("--genai", "/absent.so"), "/absent.so: expected onnxruntime-genai's shared library, found: No such file"),
        (("--genai", onnxruntime_library()), "found a library without OgaResultGetError"),
    ],
)
def test_what_cannot_be_done(arguments: tuple[object, ...], message: str) -> None:
    assert message in refused(cpp_host(), stories_folder(), *arguments)


def test_folders_that_are_none_or_damaged(tmp_path: Path) -> None:
    assert "does not exist" in refused(cpp_host(), tmp_path / "absent")
    assert "expected a model folder" in refused(cpp_host())
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, "model", "nosuch", value=1)
    assert '"nosuch"' in refused(cpp_host(), folder)
    shutil.copy(stories_folder() / "genai_config.json", folder)
    os.truncate(folder / "model.onnx.data", 100_000)
    assert "model.onnx.data ends too early, after 100000 bytes: expected 101376 or more" in refused(cpp_host(), folder)
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").mkdir()
    assert "expected the weights of the model in a regular file, found a folder" in refused(cpp_host(), folder)
    (folder / "model.onnx.data").rmdir()
    assert "model.onnx.data is missing: it holds the weights of the model" in refused(cpp_host(), folder)
    shutil.copy(stories_folder() / "model.onnx.data", folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(cpp_host(), folder)


NO_TEXTS = [b"a\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"caf\xc3", b"\xe2\x82", b"\x80", b"a\0b"]


@pytest.mark.parametrize("bad", NO_TEXTS, ids=repr)
def test_a_line_that_is_no_text_is_refused_and_the_next_one_read(bad: bytes) -> None:
    at = len(bad.decode("utf-8", "ignore").partition("\0")[0].encode())
    done = subprocess.run(
        [cpp_host(), stories_folder(), "--kernel", "exact", "--greedy"],
        input=bad + b"\n" + PROMPT.encode() + b"\n",
        env={**os.environ, "FAIRY2I_LIBRARY": fairy2i_runtime.library_path()},
        capture_output=True,
        check=True,
    )
    found = "a zero byte" if b"\0" in bad else "other bytes"
    assert f"the line: expected a text in UTF-8, found {found} at byte {at}" in done.stderr.decode()
    assert expected(kernel="exact") in done.stdout.decode()


def test_text_of_every_length_of_a_character() -> None:
    for text in ("é ", "€ \ud7ff\ue000", "\U00010000\U0010ffff"):
        assert run_host(cpp_host(), stories_folder(), "--prompt", text, "--max-new-tokens", "1").returncode == 0


def test_an_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [cpp_host(), stories_folder(), "--prompt", PROMPT],
            env={**os.environ, "FAIRY2I_LIBRARY": fairy2i_runtime.library_path()},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "fairy2i_chat: standard output cannot be written: No space left on device\n"


def test_libraries_for_another_processor(tmp_path: Path) -> None:
    for option, library in (("--library", fairy2i_runtime.library_path()), ("--genai", genai_library())):
        foreign = for_another_processor(library, tmp_path / "lib.so")
        assert "found one that is built for " in refused(cpp_host(), stories_folder(), option, foreign)


def test_an_onnxruntime_that_is_too_old(tmp_path: Path) -> None:
    old = stub_onnxruntime(tmp_path / "libold.so", "1.23.2")
    assert "expected onnxruntime 1.24.4 or newer, found 1.23.2" in refused(
        cpp_host(), stories_folder(), "--onnxruntime", old
    )
    odd = stub_onnxruntime(tmp_path / "libodd.so", "1.99.0")
    assert "does not take the onnxruntime it is given" in refused(cpp_host(), stories_folder(), "--onnxruntime", odd)


def test_another_library_is_not_run_by_accident(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    shutil.copy(fairy2i_runtime.library_path(), folder / "libfairy2i_ops.so")  # the same one does no harm
    assert told(folder, "--kernel", "exact") == expected(kernel="exact")
    with (folder / "libfairy2i_ops.so").open("ab") as file:
        file.write(b"an older one")
    assert "is another library than" in refused(cpp_host(), folder)
    done = run_host(cpp_host(), stories_folder(), "--prompt", PROMPT, cwd=folder)
    assert "or work in another directory" in done.stderr
    data = Path(fairy2i_runtime.library_path()).read_bytes()
    (tmp_path / "renamed.so").write_bytes(data.replace(b"\0libfairy2i_ops.so\0", b"\0libfairy2i_opx.so\0"))
    message = refused(cpp_host(), stories_folder(), "--library", tmp_path / "renamed.so")
    assert "expected that the system knows it as libfairy2i_ops.so once it is loaded, found nothing" in message


def test_a_library_that_the_folder_names_is_not_loaded(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, "model", "decoder", "session_options", "custom_ops_library", value="evil.so")
    (folder / "evil.so").write_bytes(b"no library")
    assert told(folder, "--kernel", "exact") == expected(kernel="exact")  # ours took its place
    text = (folder / "genai_config.json").read_text()
    twice = text.replace(
        '"session_options": {', '"session_options": {"custom_ops_library": "evil.so"}, "session_options": {'
    )
    (folder / "genai_config.json").write_text(twice)
    assert "found it 2 times" in refused(cpp_host(), folder)


def test_help() -> None:
    done = run_host(cpp_host(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for value in CHAT_DEFAULTS.values():
        assert f" {value} " in done.stdout.replace("\n", " ").replace(",", " ")
    for option in (
        "prompt",
        "library",
        "onnxruntime",
        "genai",
        "max-new-tokens",
        "context",
        "threads",
        "kernel",
        "greedy",
        "seed",
    ):
        assert f"--{option}" in done.stdout
