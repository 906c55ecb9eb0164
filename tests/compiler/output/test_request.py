"""Options: declared once, known alike to the command line, the Python functions, --dry-run, the rewriter and training."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import fairy2i_export
from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export, rewrite_onnx
from fairy2i_export.commands.export import main
from fairy2i_export.commands.tools import main as tools
from fairy2i_export.compile import run
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import CheckpointError, LibraryError, OptionError, OutputError, TokenizerError
from fairy2i_export.output.workspace import partial_folder
from fairy2i_export.request.option import declared, flag_of
from fairy2i_export.request.quantization import Quantization
from fairy2i_export.request.request import Request
from fairy2i_export.train.recipe import Recipe
from fairy2i_runtime import core
from rewrite_helpers import save_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    w = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    return save_model(tmp_path / "net.onnx", "y = MatMul (x, w)", {"x": ("float", [2, 16])}, {"y": "float"}, {"w": w})


@pytest.fixture
def forgotten_library() -> Any:
    """Makes the next use of the operator library look for it again; done once more after the test."""
    core._library.cache_clear()
    yield
    core._library.cache_clear()


def flags_in_help(command: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert command(arguments) == 0
    return set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))


def test_the_command_line_is_made_of_the_declarations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = flags_in_help(main, ["--help"], capsys)
    assert {flag_of(*item) for item in declared(Request, "checkpoint").items()} <= shown
    assert "--calibration" not in shown
    trained = flags_in_help(tools, ["train", "--help"], capsys)
    wanted = [flag_of(*item).split("/") for item in declared(Recipe, "training").items()]
    assert {flag for flags in wanted for flag in flags} <= trained


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    missing = [name for name, found in declared(Request, "checkpoint").items() if f"`{flag_of(name, found)}" not in page]
    assert not missing


def test_python_functions_show_and_take_the_same_options(source: Path, tmp_path: Path) -> None:
    for function, end, extra in (
        (export, "checkpoint", {"source", "out", "observer"}),
        (dry_run, "checkpoint", {"source", "out"}),
        (rewrite_onnx, "onnx", {"source", "out", "dry_run", "observer"}),
    ):
        assert set(inspect.signature(function).parameters) == extra | set(declared(Request, end))
        for name, found in declared(Request, end).items():
            assert f"{name}: {found.help}" in (function.__doc__ or "")
    with pytest.raises(OptionError, match="unknown option 'stage': expected stages, profile"):
        export(source, tmp_path / "out", stage=2)
    with pytest.raises(OptionError, match="unknown option 'stage'"):
        dry_run(source, tmp_path / "out", stage=2)
    report = export(source, tmp_path / "out", **dict.fromkeys(declared(Request, "checkpoint")))  # None: nothing is asked for
    assert report.options.stages == 2


def test_options_of_another_front_end_are_refused_by_name(onnx_model: Path, tmp_path: Path) -> None:
    for name in set(declared(Request, "checkpoint")) - set(declared(Request, "onnx")):
        with pytest.raises(OptionError, match=r"--[a-z-]+ is for checkpoints only, and .*net\.onnx is an ONNX model"):
            rewrite_onnx(onnx_model, tmp_path / "out", **{name: "x"})
    with pytest.raises(OptionError, match="row multiplier: expected one of none, rms, got 'learned'"):
        rewrite_onnx(onnx_model, tmp_path / "out", row_multiplier="learned")


def test_a_single_glob_is_one_glob_and_not_its_letters(source: Path, onnx_model: Path, tmp_path: Path) -> None:
    one, listed = (export(source, tmp_path / f"{i}", include=x) for i, x in enumerate(("*.q_proj", ["*.q_proj"])))
    assert [x.name for x in one.rewritten] == [x.name for x in listed.rewritten]
    assert one.options.include == ("*.q_proj",)
    assert export(source, tmp_path / "2", exclude="lm_head").options.exclude == ("lm_head",)
    assert dry_run(source, None, exclude="lm_head").options.exclude == ("lm_head",)
    assert [x.weight for x in rewrite_onnx(onnx_model, tmp_path / "net", include="w").rewritten] == ["w"]
    text = tmp_path / "text.txt"
    text.write_text("nothing")
    with pytest.raises(OptionError, match=r"calibrate .*text\.txt"):
        export(source, tmp_path / "3", calibrate=str(text))


def test_training_shares_the_declarations_of_quantizing() -> None:
    for item in fields(Quantization):
        ours, theirs = (declared(kind, end)[item.name] for kind, end in ((Request, "checkpoint"), (Recipe, "training")))
        assert ours is theirs


# name -> options, what makes it impossible, and the error: a dry run and an export say the same, before anything is made
def unusable_kernel(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setenv("FAIRY2I_KERNEL", "fast")


def unusable_isa(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setenv("FAIRY2I_ISA", "mmx")


def no_library(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setenv("FAIRY2I_LIBRARY", "/nothing.so")


def target_exists(_: pytest.MonkeyPatch, out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").touch()


def foreign_partial(_: pytest.MonkeyPatch, out: Path) -> None:
    partial_folder(out).write_text("mine")


def integers(_: pytest.MonkeyPatch, out: Path) -> None:
    path = out.with_name("model") / "model.safetensors"
    found, count = re.subn(rb'(0\.self_attn\.q_proj\.weight": \{"dtype": )"(F32"|BF16")', rb'\1"I16"', path.read_bytes())
    assert count == 1
    header = found[8 : found.index(b"}}") + 2].rstrip()
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes(data[:8] + header.ljust(size) + data[8 + size :])


def nothing(_: pytest.MonkeyPatch, __: Path) -> None:
    pass


IMPOSSIBLE = {
    "threads": ({"jobs": 0}, nothing, OptionError, "jobs: expected a number from 1, got 0"),
    "stages": ({"stages": 9}, nothing, OptionError, "stages: expected a number from 1 to 4"),
    "format's option": ({"dense_type": "float16"}, nothing, OptionError, "is for the backend dense"),
    "kernel": ({"kv_cache": "int8"}, unusable_kernel, OptionError, 'unknown kernel "fast"'),
    "ISA": ({"kv_cache": "int8"}, unusable_isa, OptionError, 'ISA "mmx"'),
    "library": ({}, no_library, LibraryError, "FAIRY2I_LIBRARY names"),
    "tokenizer graphs": ({"tokenizer_onnx": True}, nothing, TokenizerError, "cannot become an ONNX graph"),
    "target": ({}, target_exists, OutputError, "exists already"),
    "unfinished": ({}, foreign_partial, OutputError, "is no unfinished export"),
    "stored type": ({}, integers, CheckpointError, "q_proj.weight is stored as I16, expected one of"),
    "threads, many": ({"jobs": 10**30}, nothing, OptionError, "jobs: expected at most 1024 threads"),
    "cache text": ({"calibration": "x"}, nothing, OptionError, "only an int8 cache is calibrated"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.usefixtures("forgotten_library")
def test_a_dry_run_finds_what_an_export_finds(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, spoil, error, words = IMPOSSIBLE[kind]
    spoil(monkeypatch, tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    if kind != "target":  # which is found by who makes it
        monkeypatch.setattr(run, "output_folder", lambda *_, **__: pytest.fail("work began"))
    messages = []
    for function in (dry_run, export):
        with pytest.raises(error, match=words) as caught:
            function(source, tmp_path / "out", **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_dry_run_finds_that_the_folder_cannot_be_made(source: Path, onnx_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for function, of in ((dry_run, source), (export, source), (rewrite_onnx, onnx_model)):
        for out in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
            with pytest.raises(OutputError, match=r"cannot be made: .*file is no folder"):
                function(of, out)
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    with FileLock(partial / "lock"):
        for function, of in ((dry_run, source), (export, source), (rewrite_onnx, onnx_model)):
            with pytest.raises(OutputError, match="another export into this folder is running"):
                function(of, tmp_path / "out")
    assert dry_run(source, tmp_path / "out").path == tmp_path / "out"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": 3}, "include: expected a text, got 3"),
        ({"exclude": ["*.q_proj", 3]}, "exclude: expected a text, got 3"),
        ({"calibration": 3.0}, "calibration: expected a path, got 3.0"),
        ({"force": "yes"}, "force: expected True or False, got 'yes'"),
        ({"rope_scaling": ["yarn", 2]}, "rope scaling: expected a text"),
        ({"backend": np.zeros(2)}, "backend: expected a text"),
        ({"kv_cache": np.zeros(2)}, "kv cache: expected a text"),
        ({"stages": 2.5}, "stages: expected a number from 1 to 4"),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_name(source: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        dry_run(source, None, **options)


def test_numbers_of_numpy_are_numbers(source: Path) -> None:
    assert dry_run(source, None, stages=np.int64(3), context_length=np.int32(20)).options.stages == 3


@pytest.mark.usefixtures("forgotten_library")
def test_a_dry_run_of_a_rewrite_says_that_the_library_is_missing(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRY2I_LIBRARY", "/nothing.so")
    for dry in (True, False):  # it says no where the rewriting would
        with pytest.raises(LibraryError, match="FAIRY2I_LIBRARY names"):
            rewrite_onnx(onnx_model, tmp_path / "out", dry_run=dry)


@pytest.mark.usefixtures("forgotten_library")
def test_an_unknown_kernel_is_reported_where_nothing_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantizing needs none: the folder is written, and the user hears that it will not run like this."""
    monkeypatch.setenv("FAIRY2I_KERNEL", "fast")
    report = export(source, tmp_path / "out")
    assert [x for x in report.warnings if 'will not run in this environment: unknown kernel "fast"' in x]
    assert dry_run(source, None).warnings[-1] in report.warnings
    monkeypatch.delenv("FAIRY2I_KERNEL")
    assert not [x for x in export(source, tmp_path / "good").warnings if "will not run" in x]


def test_names_of_former_versions_are_found() -> None:
    from fairy2i_export.dry_run import dry_run as former_dry_run
    from fairy2i_export.exporter import Observer

    assert former_dry_run is dry_run
    assert fairy2i_export.Observer is Observer
