"""fairy2i-export as a user meets it: options, exit codes, one clear message for every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from export_helpers import edit_json, make_checkpoint, write_tokenizer
from fairy2i_export import __version__
from fairy2i_export.commands.export import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_plain_run(run: Run, source: Path, tmp_path: Path) -> None:
    code, out, err = run(source, "-o", tmp_path / "out")
    assert code == 0
    assert (tmp_path / "out" / "model.onnx").exists()
    assert re.search(r"about [\d.]+ kB of output, [\d.]+ MB of memory at most", err)
    assert "warning: config.json does not say that this model was trained with Fairy2i" in err
    for row in ("layers rewritten", "15 of 15", "bits per weight", "quantization error", "peak RAM", "time"):
        assert row in out
    assert "fairy2i generate" not in out  # it would talk nonsense
    assert "--calibrate" in out.splitlines()[-1]


def test_the_summary_says_how_to_try_a_trained_model(run: Run, source: Path, tmp_path: Path) -> None:
    _, out, _ = run(source, "-o", tmp_path / "out", "--trained")
    assert out.splitlines()[-1] == f'Try it: fairy2i generate {tmp_path / "out"} "Once upon a time"'


def test_every_option(run: Run, source: Path, tmp_path: Path) -> None:
    arguments = ["--stages", 3, "--profile", "fp32", "--lm-head", "int8", "--embedding", "int8"]
    arguments += ["--row-multiplier", "rms", "--context-length", 40, "--trained"]
    arguments += ["--kv-cache", "float16", "--rope-scaling", "linear:2"]
    arguments += ["--include", "model.*", "--exclude", "*.k_proj", "--exclude", "*.v_proj"]
    code, out, err = run(source, "--output", tmp_path / "out", *arguments)
    assert (code, "warning" in err) == (0, False)
    assert "10 of 15" in out
    assert re.search(r"left +│ 4 dense: --exclude \(model\.layers\.0\.self_attn\.k_proj, .* \.\.\.\)", out)
    assert re.search(r"left +│ 1 int8: --lm-head int8 \(lm_head\)", out)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert (metadata["fairy2i.stages"], metadata["fairy2i.profile"]) == ("3", "fp32")
    assert (metadata["fairy2i.embedding"], metadata["fairy2i.row_multiplier"]) == ("int8", "rms")
    assert (metadata["fairy2i.kv_cache"], metadata["fairy2i.rope_scaling"]) == ("float16", "linear:2")


def test_quiet_prints_warnings_only(run: Run, source: Path, tmp_path: Path) -> None:
    assert run(source, "-o", tmp_path / "a", "--trained", "--quiet") == (0, "", "")
    code, out, err = run(source, "-o", tmp_path / "b", "-q")
    assert (code, out) == (0, "")
    assert err.startswith("warning: ")


def test_force_and_default_folder(run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert run("model", "-q")[0] == 0
    assert sorted(path.name for path in source.parent.iterdir()) == ["model", "model-fairy2i"]
    code, out, err = run("model")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert run("model", "--force", "-q")[0] == 0


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"fairy2i-export {__version__}\n", "")
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for option in ("--output", "--stages", "--profile", "--lm-head", "--embedding", "--include", "--exclude"):
        assert option in out
    for option in (
        "--row-multiplier",
        "--context-length",
        "--trained",
        "--force",
        "--quiet",
        "--kv-cache",
        "--cache-calibration",
        "--calibrate",
        "--rope-scaling",
    ):
        assert option in out


def truncate(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def nan_weight(source: Path) -> None:
    bad = np.full((72, 150), np.nan, ml_dtypes.bfloat16)
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    make_checkpoint(source, replace={"model.layers.1.mlp.down_proj.weight": bad})


def keep(source: Path) -> None:
    """Nothing is wrong with the checkpoint."""


MISTAKES: list[Any] = [
    ("wrong architecture", lambda s: edit_json(s / "config.json", architectures=["OPTForCausalLM"]), [], "OPTForCausalLM"),
    ("truncated", truncate, [], "truncated"),
    ("NaN", nan_weight, [], "model.layers.1.mlp.down_proj.weight: 10800 of 10800 values are not finite"),
    ("pickle", lambda s: (s / "model.safetensors").rename(s / "pytorch_model.bin"), [], "only pickle weights"),
    ("no tokenizer", lambda s: (s / "tokenizer.json").unlink(), [], "tokenizer.json: missing"),
    ("large tokenizer", lambda s: write_tokenizer(s, 999), [], "belongs to another model"),
    ("unknown option", keep, ["--stage", "2"], "No such option: --stage"),
    ("no number", keep, ["--stages", "two"], "Invalid value for '--stages'"),
    ("stages", keep, ["--stages", "7"], "stages: expected a number from 1 to 4, got 7"),
    ("profile", keep, ["--profile", "bf16"], "profile: expected one of"),
    ("pattern", keep, ["--exclude", "[x"], "matches no linear layer"),
    ("nothing rewritten", keep, ["--exclude", "*"], "no layer would become"),
    ("second argument", keep, ["surplus"], "surplus"),
]


@pytest.mark.parametrize(("damage", "options", "words"), [pytest.param(*rest, id=name) for name, *rest in MISTAKES])
def test_mistakes(run: Run, source: Path, tmp_path: Path, damage: Any, options: list[str], words: str) -> None:
    damage(source)
    code, out, err = run(source, "-o", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert words in err
    lines = [line for line in err.splitlines() if not line.startswith("W2, ")]  # the estimate may have come first
    assert len(lines) == 1
    assert lines[0].startswith("fairy2i-export: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_mistakes_with_source_and_output(run: Run, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ((tmp_path / "nothing",), "no such file or directory"),
        (("some.onnx",), "some.onnx: no such file; expected an ONNX model"),
        ((source, "-o", tmp_path / "file" / "out"), "cannot be made"),
        ((source, "-o", "/proc/fairy2i/out"), "cannot be made"),
        ((source, "-o", source, "--force"), "holds the source checkpoint"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1


def test_the_training_entry_of_a_real_checkpoint_is_used(run: Run, tmp_path: Path, source: Path) -> None:
    edit_json(source / "config.json", fairy2i={"stages": 1, "row_multiplier": "rms", "latent": True})
    code, _, err = run(source, "-o", tmp_path / "out")
    assert code == 0
    assert err.startswith("W1, greedy, bf16-reference: about")
    assert "warning" not in err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["fairy2i"]["stages"] == 1
