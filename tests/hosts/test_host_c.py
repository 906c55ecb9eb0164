"""examples/c: the C host gives the tokens of the Python runtime, releases what it takes, and says in a line what is wrong."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from test_host_values import oldest_onnxruntime

import fairy2i_runtime
from fairy2i_export import export
from host_programs import (
    c_host,
    for_another_processor,
    onnxruntime_library,
    plain_c_host,
    refused,
    run_host,
    stub_onnxruntime,
    without_memory,
)
from runtime_models import CHECKPOINT, copy_of_stories, earlier_form, edit_config, stories_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of shared libraries")
PROMPT = (1, 403, 407, 261, 378)  # <s> Once upon a time
LONG = (1, *(token % 500 + 5 for token in range(0, 7 * 200, 7)))  # more than are read in one run


def expected(folder: Path, prompt: tuple[int, ...] = PROMPT, count: int = 40, **options: Any) -> list[int]:
    return fairy2i_runtime.load(folder, threads=1, **options).generate(list(prompt), max_new_tokens=count).token_ids


def told(folder: Path, prompt: tuple[int, ...] = PROMPT, count: int = 40, *options: object, **variables: str) -> list[int]:
    done = run_host(c_host(), folder, *prompt, "--threads", 1, "--max-new-tokens", count, *options, **variables)
    assert done.returncode == 0, done.stderr  # the sanitizers' findings, too
    assert f"tokens behind {len(prompt)}; stopped: " in done.stderr
    return [int(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kernel", ["exact", "lut", "dot"])
def test_the_tokens_of_the_python_runtime(kernel: str) -> None:
    tokens = expected(stories_folder(), count=256, kernel=kernel)
    assert len(tokens) == 256
    assert told(stories_folder(), PROMPT, 256, "--kernel", kernel) == tokens


def test_a_prompt_of_several_runs_and_of_standard_input() -> None:
    tokens = expected(stories_folder(), LONG)
    assert told(stories_folder(), LONG) == tokens
    text = "\n".join(map(str, LONG[:100])) + ", " + ",".join(map(str, LONG[100:]))
    done = run_host(c_host(), stories_folder(), "--max-new-tokens", 40, text=text)
    assert [int(line) for line in done.stdout.split()] == tokens


@pytest.mark.parametrize(
    "options", [{"kv_cache": "int8"}, {"kv_cache": "float16"}, {"backend": "matmulnbits"}, {"embedding": "int8"}]
)
def test_exports_of_other_forms(options: dict[str, str], tmp_path: Path) -> None:
    export(CHECKPOINT, tmp_path / "model", **options)
    without = {"FAIRY2I_LIBRARY": "/absent.so"} if "backend" in options else {}
    assert told(tmp_path / "model", PROMPT, 40, **without) == expected(tmp_path / "model")


def test_folders_of_earlier_versions_which_give_logits_of_all_tokens(tmp_path: Path) -> None:
    folder = earlier_form(copy_of_stories(tmp_path / "model"))
    assert told(folder, LONG) == told(stories_folder(), LONG) == expected(folder, LONG)


def test_end_tokens(tmp_path: Path) -> None:
    tokens = expected(stories_folder())
    folder = copy_of_stories(tmp_path / "model")
    end = next(n for n in range(5, 40) if tokens[n] not in tokens[:n])
    for named in (tokens[end], [511, tokens[end]]):
        edit_config(folder, "model", "eos_token_id", value=named)
        assert told(folder) == tokens[:end]
    edit_config(folder, "model", "eos_token_id", value=None)
    assert told(folder) == tokens


def test_the_context_ends_a_text() -> None:
    tokens = fairy2i_runtime.load(stories_folder(), threads=1, context_length=20).generate(list(PROMPT), max_new_tokens=40)
    assert (tokens.finish_reason, len(tokens.token_ids)) == ("context", 16)
    done = run_host(c_host(), stories_folder(), *PROMPT, "--context", 20, "--max-new-tokens", 40)
    assert [int(line) for line in done.stdout.split()] == tokens.token_ids
    assert done.stderr == "16 tokens behind 5; stopped: context is full\n"
    assert run_host(c_host(), stories_folder(), *PROMPT, "--max-new-tokens", 0).stdout == ""


def test_the_folders_kernel_and_who_comes_before_it(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, "model", "decoder", "session_options", "fairy2i.kernel", value="absent")
    assert 'unknown kernel "absent"' in refused(c_host(), folder, 1)
    assert told(folder, PROMPT, 40, "--kernel", "exact") == expected(stories_folder(), kernel="exact")
    assert told(folder, PROMPT, 40, FAIRY2I_KERNEL="lut") == expected(stories_folder(), kernel="lut")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected at least one token id"),
        (("x",), "token: expected an integer from 0 to 2147483647, got 'x'"),
        (("1", "", "2"), "got ''"),
        (("1", "2147483648"), "got '2147483648'"),
        (("1", "512"), "token 512 is not in the model's vocabulary of 512"),
        (("1", "--threads", "0"), "--threads: expected an integer from 1 to 1024, got '0'"),
        (("1", "--threads", "2x"), "got '2x'"),
        (("1", "--max-new-tokens", "-1"), "--max-new-tokens: expected an integer from 0"),
        (("1", "--context", "513"), "--context: expected 1 to 512 (what the model was built for), got 513"),
        (("1", "2", "--context", "2"), "2 tokens leave no room for another in the context of 2"),
        (("1", "--kernel", "nosuch"), 'unknown kernel "nosuch"'),
        (("1", "--library"), "--library: expected a value behind it"),
        (("1", "--nosuch", "3"), "--nosuch: there is no such option"),
        (("1", "--library", "/absent/lib.so"), "/absent/lib.so: expected the operator library, found: No such file"),
        (("1", "--library", "absent.so"), "absent.so: expected the operator library, which does not load"),
        (("1", "--library", __file__), "invalid ELF header"),
        (("1", "--library", onnxruntime_library()), "found a library without Fairy2i_RegisterCustomOps"),
        (("1", "--onnxruntime", "/absent.so"), "/absent.so: expected onnxruntime's shared library, found: No such file"),
        (("1", "--onnxruntime", fairy2i_runtime.library_path()), "found a library without OrtGetApiBase"),
    ],
)
def test_what_cannot_be_done(arguments: tuple[object, ...], message: str) -> None:
    assert message in refused(c_host(), stories_folder(), *arguments)


def test_standard_input_that_is_no_tokens() -> None:
    for text, message in (
        ("1 two", "got 'two'"),
        ("1" * 100, "standard input: expected token ids, found '1111"),
        ("1\0", "a zero byte"),
    ):
        done = run_host(c_host(), stories_folder(), text=text)
        assert done.returncode == 2
        assert message in done.stderr


def test_libraries_for_another_processor(tmp_path: Path) -> None:
    foreign = for_another_processor(fairy2i_runtime.library_path(), tmp_path / "lib.so")
    message = refused(c_host(), stories_folder(), 1, FAIRY2I_LIBRARY=str(foreign))
    assert "expected the operator library for " in message
    assert "found one that is built for " in message
    foreign = for_another_processor(onnxruntime_library(), tmp_path / "ort.so")
    assert "expected onnxruntime's shared library for " in refused(c_host(), stories_folder(), 1, "--onnxruntime", foreign)


def test_an_onnxruntime_that_is_too_old(tmp_path: Path) -> None:
    old = stub_onnxruntime(tmp_path / "libold.so", "1.23.2")
    wanted = ".".join(map(str, oldest_onnxruntime()))
    message = refused(c_host(), stories_folder(), 1, "--onnxruntime", old)
    assert f"expected onnxruntime {wanted} or newer, found 1.23.2" in message
    almost = stub_onnxruntime(tmp_path / "libalmost.so", "1.24.3")
    assert f"{wanted} or newer, found 1.24.3" in refused(c_host(), stories_folder(), 1, "--onnxruntime", almost)
    for number in (wanted, "1.24.10", "1.25.0"):
        new = stub_onnxruntime(tmp_path / f"lib{number}.so", number)
        assert "has no C API 24" in refused(c_host(), stories_folder(), 1, "--onnxruntime", new)
    odd = stub_onnxruntime(tmp_path / "libodd.so", "2.0.0")
    assert "has no C API 24" in refused(c_host(), stories_folder(), 1, "--onnxruntime", odd)


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "does not exist; fairy2i-export SOURCE -o" in refused(c_host(), tmp_path / "absent", 1)
    assert "is a file: expected the folder" in refused(c_host(), stories_folder() / "model.onnx", 1)
    assert "is not a model folder: it has no genai_config.json" in refused(c_host(), CHECKPOINT, 1)
    assert "expected a model folder" in refused(c_host())


def test_damaged_folders(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    os.truncate(folder / "model.onnx.data", 100_000)
    message = refused(c_host(), folder, 1)
    assert "model.onnx.data ends too early, after 100000 bytes: expected 101376 or more" in message
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").mkdir()
    assert "expected the weights of the model in a regular file, found a folder" in refused(c_host(), folder, 1)
    (folder / "model.onnx.data").rmdir()
    os.mkfifo(folder / "model.onnx.data")
    assert "in a regular file, found a pipe, a device or the like" in refused(c_host(), folder, 1)
    (folder / "model.onnx.data").unlink()
    assert "model.onnx.data is missing: it holds the weights of the model" in refused(c_host(), folder, 1)
    (folder / "model.onnx").unlink()
    assert "model.onnx is missing: the folder is not a complete export" in refused(c_host(), folder, 1)
    (folder / "genai_config.json").write_text('{"model": ')
    assert "genai_config.json is not valid JSON" in refused(c_host(), folder, 1)
    (folder / "genai_config.json").write_text("[]")
    assert "expected an object model with an object decoder" in refused(c_host(), folder, 1)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model", "context_length"), 0, "context_length: expected 1 to 16777216"),
        (("model", "context_length"), "512", "context_length: expected 1 to 16777216"),
        (("model", "context_length"), 1e30, "context_length: expected 1 to 16777216"),
        (("model", "eos_token_id"), [1, "2"], "eos_token_id: expected a token id or a list"),
        (("model", "eos_token_id"), 1.5, "eos_token_id: expected a token id or a list"),
        (("model", "decoder", "filename"), "../model.onnx", "filename: expected the name of a file in the folder"),
        (("model", "decoder", "filename"), 3, "filename: expected the name of a file in the folder"),
        (("model", "decoder", "session_options", "fairy2i.kernel"), 3, "fairy2i.kernel: expected a name"),
        (("model", "custom_ops_library"), "evil.so", "found it 2 times"),
    ],
)
def test_damaged_configurations(keys: tuple[str, ...], value: object, message: str, tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    edit_config(folder, *keys, value=value)
    assert message in refused(c_host(), folder, 1)


def test_a_graph_of_another_form(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = copy_of_stories(tmp_path / "model")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.graph.output[-1]
    onnx.save(model, folder / "model.onnx")
    assert "not a decoder of fairy2i-export: 12 inputs and 10 outputs" in refused(c_host(), folder, 1)
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"]) for name in "abcd"]
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name in "abc"]
    outs = [onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.INT64, ["batch", "length"]) for name in "abc"]
    other = onnx.helper.make_graph(nodes, "other", shape, outs)
    onnx.save(
        onnx.helper.make_model(other, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    assert "not a decoder of fairy2i-export: unexpected input a" in refused(c_host(), folder, 1)


def test_help() -> None:
    done = run_host(c_host(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--library", "--onnxruntime", "--max-new-tokens", "--context", "--threads", "--kernel"):
        assert option in done.stdout


def test_want_of_memory_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    assert "fairy2i_tokens: not enough memory for a context of 16777216 tokens; choose" in without_memory(
        plain_c_host(), tmp_path, 1
    )


def test_a_folder_that_was_moved(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "here")
    shutil.move(folder, tmp_path / "there")
    assert told(tmp_path / "there") == expected(stories_folder())
    assert "here does not exist" in refused(c_host(), folder, 1)
