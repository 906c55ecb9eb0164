"""Names of files and folders that nobody can use: bytes that are no UTF-8, empty texts, things that are no path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export, pack, quantize, rewrite_onnx
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import Fairy2iError, FormatError, OptionError, WeightError
from fairy2i_runtime import GenerationOptions, load, register
from fairy2i_runtime import errors as runtime
from runtime_models import stories_folder

BYTES = os.fsdecode(b"o\xe9")
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed: one message and nothing else."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.skipif(os.name != "posix", reason="names of other systems are text")
@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", BYTES],
        ["info", BYTES],
        ["generate", BYTES, "hi"],
        ["bench", "{}", "--kernel", BYTES],
        ["ppl", "{}", "--text", "x", "--separator", BYTES],
        ["report", "{}", "--against", BYTES],
        ["train", "{}", "--data", "x", "-o", BYTES],
        ["lm-eval", "--tasks", BYTES],
    ],
)
def test_tools_refuse_bytes_that_are_no_utf8(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument.format(stories_folder()) for argument in arguments]) == 2
    assert r"'o\xe9': is no UTF-8; " in message(capsys)


@pytest.mark.skipif(os.name != "posix", reason="names of other systems are text")
@pytest.mark.parametrize(
    "arguments", [["{}", "-o", BYTES], [BYTES], [BYTES + ".onnx", "-o", "x"], ["{}", "--include", BYTES]]
)
def test_an_export_refuses_them_before_it_works(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "model")
    assert export_main([argument.format("model") for argument in arguments]) == 2
    assert r"o\xe9" in message(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(os.name != "posix", reason="names of other systems are text")
@pytest.mark.parametrize("variable", ["FAIRY2I_KERNEL", "FAIRY2I_ISA"])
def test_the_environment_is_looked_at_too(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, BYTES)
    assert main(["generate", str(stories_folder()), "hi"]) == 2
    assert variable + r" 'o\xe9': is no UTF-8" in message(capsys)


@pytest.mark.skipif(os.name != "posix", reason="POSIX locales")
def test_a_name_that_the_locale_does_not_know_is_no_broken_one() -> None:
    environment = {**os.environ, **ASCII, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "fairy2i_export", "info", "é"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert b"expected text in the locale's encoding, ascii" in done.stderr


@pytest.mark.parametrize(
    ("run", "arguments", "name"),
    [
        (export_main, [""], "SOURCE"),
        (export_main, ["model", "-o", ""], "--output"),
        (export_main, ["model", "--calibrate", ""], "--calibrate"),
        (main, ["generate", "", "hi"], "DIR"),
        (main, ["info", ""], "DIR"),
        (main, ["inspect", ""], "DIR"),
        (main, ["ppl", "model", "--text", ""], "--text"),
        (main, ["report", "model", "--against", ""], "--against"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(
    run: Callable[..., int], arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert f"error: {name}" in (said := message(capsys))
    assert "got an empty text" in said


@pytest.mark.parametrize("value", [None, 3, b"src", "", "zz\0", "z\udce9", f"z{chr(0xD800)}"])
@pytest.mark.parametrize("call", [export, dry_run, rewrite_onnx, lambda value: export("src", out=value or 0)])
def test_python_callers_hear_which_argument_is_no_path(call: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(OptionError, match=r"^(source|out)\b.*(expected|is no UTF-8)"):
        call(value)


@pytest.mark.parametrize("value", [None, 3, b"src", "", "zz\0", "z\udce9"])
def test_the_runtime_says_so_too(value: Any) -> None:
    for call in (load, GenerationOptions.from_folder):
        with pytest.raises(runtime.OptionError, match=r"^folder"):
            call(value)


def test_options_that_are_paths_or_texts_are_looked_at() -> None:
    with pytest.raises(OptionError, match=r"codes from 'z.*: is no UTF-8"):
        export("src", codes_from="z\udce9")
    with pytest.raises(OptionError, match=r"exclude 'z.*: is no UTF-8"):
        export("src", exclude=["z\udce9"])


def test_recommended_options_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, found in (("nope", "nothing there"), ("file", "a file")):
        with pytest.raises(runtime.ModelFolderError, match=f"expected a folder, found {found}"):
            GenerationOptions.from_folder(tmp_path / name)
    assert GenerationOptions.from_folder(tmp_path) == GenerationOptions()


@pytest.mark.parametrize("value", [None, "text", [["a", "b"], ["c", "d"]], [[1.0], [1.0, 2.0]], {}])
def test_what_is_no_matrix_is_not_quantized(value: Any) -> None:
    with pytest.raises(WeightError, match=r"^weight: expected a matrix"):
        quantize(value)


@pytest.mark.parametrize("value", [None, "text", np.zeros((2, 2))])
def test_what_is_not_quantized_is_not_packed(value: Any) -> None:
    with pytest.raises(FormatError, match=r"^q: expected a QuantizedLinear, got"):
        pack(value)
    with pytest.raises(runtime.OptionError, match=r"^session_options: expected an onnxruntime\.SessionOptions, got"):
        register(value)
    assert issubclass(FormatError, Fairy2iError)


@pytest.mark.parametrize("value", [None, 3, [1.5], {"a": 1}])
def test_a_prompt_is_a_text_or_tokens(value: Any) -> None:
    model = load(stories_folder())
    with pytest.raises(runtime.OptionError, match=r"^prompt: expected a text or a list of token ids, got"):
        model.generate(value)
    with pytest.raises(runtime.OptionError, match=r"^prompts\[1\]: expected a text or a list of token ids, got"):
        model.generate_batch(["a", value])


def test_only_a_model_folder_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(runtime.ModelFolderError, match=r"is a file: expected the folder with genai_config\.json$"):
        load(tmp_path / "t.txt")
    with pytest.raises(runtime.ModelFolderError, match="try "):
        load(stories_folder() / "model.onnx")


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_temperatures_are_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(stories_folder()), "hi", "--temperature", value]) == 2
    assert "temperature: expected a finite number of at least 0" in message(capsys)
