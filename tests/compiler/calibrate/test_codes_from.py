"""--codes-from: the layers of a finished export in another folder, byte for byte those that a fresh export writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fairy2i_runtime
from conftest import ROOT
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.export import main
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import CheckpointError, Fairy2iError, OptionError
from fairy2i_runtime.commands.console import USER_ERROR

STORIES = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
JOINT = {"stages": 3, "quantizer": "joint", "row_multiplier": "rms", "profile": "fp32", "trained": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("codes") / "model")


@pytest.fixture(scope="module")
def earlier(source: Path) -> Path:
    """With a quantized head, a float16 cache and a shorter context than the model's."""
    out = source.parent / "earlier"
    export(source, out, **JOINT, kv_cache="float16", context_length=64, exclude=["*.down_proj"])
    return out


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files that options decide about; README.md has the folder's name in it."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "README.md"
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"lm_head": "int8"},
        {"lm_head": "int4", "embedding": "int8"},
        {"kv_cache": "int8"},
        {"kv_cache": "float32", "context_length": 96},
        {"backend": "matmulnbits"},
        {"backend": "dense", "dense_type": "float16", "lm_head": "float"},
        {"rope_scaling": "linear:2"},
    ],
    ids=str,
)
def test_as_a_fresh_export(source: Path, earlier: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    fresh = {**JOINT, "kv_cache": "float16", "context_length": 64, "exclude": ["*.down_proj"], **changes}
    export(source, tmp_path / "fresh", **fresh)
    export(source, tmp_path / "again", codes_from=earlier, trained=True, **changes)
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")


def test_learned_scales_and_trained_models(tmp_path: Path) -> None:
    export(STORIES, tmp_path / "first")
    export(STORIES, tmp_path / "second", codes_from=tmp_path / "first", kv_cache="int8", embedding="int8")
    export(STORIES, tmp_path / "fresh", kv_cache="int8", embedding="int8")
    assert contents(tmp_path / "second") == contents(tmp_path / "fresh")
    assert fairy2i_runtime.load(tmp_path / "second").generate("Once", max_new_tokens=5).text


def test_in_the_place_of_itself(source: Path, earlier: Path, tmp_path: Path) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    export(source, tmp_path / "out", codes_from=tmp_path / "out", lm_head="int8", force=True, trained=True)
    export(source, tmp_path / "fresh", codes_from=earlier, lm_head="int8", trained=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_calibrated_model_is_not_calibrated_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{i}" for i in np.random.default_rng(0).integers(3, 90, 4000)))
    calibration: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": 600, "jobs": 1}
    export(source, tmp_path / "first", **calibration)
    export(source, tmp_path / "fresh", **calibration, lm_head="int4", kv_cache="float16")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # needs neither torch
    text.unlink()  # nor the text
    export(source, tmp_path / "again", codes_from=tmp_path / "first", lm_head="int4", kv_cache="float16")
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")
    model = onnx.load(tmp_path / "again" / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["fairy2i.calibration"])["tokens"] == 576
    assert metadata["fairy2i.row_multiplier"] == "calibrated"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 2}, r"stages: the codes in .*earlier were made with 3, got 2"),
        ({"quantizer": "greedy"}, "quantizer: the codes in .* were made with joint, got 'greedy'"),
        ({"profile": "bf16-reference"}, "profile: the codes in .* were made with fp32"),
        ({"row_multiplier": "none"}, "row multiplier: the codes in .* were made with rms"),
        ({"calibrate": ["text"]}, "leave one of the two out"),
        ({"codes_from": "{tmp}/nowhere"}, "found no model.onnx in it"),
        ({"codes_from": "{tmp}"}, "found no model.onnx in it"),
        ({"codes_from": "{tmp}/dense"}, "expected Fairy2iMatMul nodes"),
        ({"codes_from": "{tmp}/int8head", "lm_head": "fairy2i"}, "no codes for lm_head, which is int8 there"),
        ({"codes_from": "{tmp}/other"}, r"is shape \[72, 72\] there and \[144, 144\] in the source"),
        ({"codes_from": "{tmp}/garbage"}, "expected an ONNX model, but it cannot be read"),
    ],
    ids=str,
)
def test_refused_before_any_work(
    source: Path, earlier: Path, tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "{tmp}/dense" in options.values():
        export(source, tmp_path / "dense", backend="dense", trained=True)
    if "{tmp}/int8head" in options.values():
        export(source, tmp_path / "int8head", lm_head="int8", trained=True)
    if "{tmp}/garbage" in options.values():
        shutil.copytree(earlier, tmp_path / "garbage")
        (tmp_path / "garbage" / "model.onnx").write_bytes(b"\xff" * 100)
    if "{tmp}/other" in options.values():
        shutil.copytree(earlier, tmp_path / "other")
        source = make_checkpoint(tmp_path / "larger", hidden_size=144)
    given = {"codes_from": str(earlier), **options}
    given = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in given.items()}
    for attempt in (export, dry_run):
        with pytest.raises(Fairy2iError, match=message):
            attempt(source, tmp_path / "out", **given)
    assert not list(tmp_path.glob("*out*"))


def test_codes_of_other_weights_are_refused(source: Path, earlier: Path, tmp_path: Path) -> None:
    """The same shapes: only the hash of the files tells, when they have been read."""
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"is not what .*earlier was made from"):
        export(other, tmp_path / "out", codes_from=earlier)
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    edit_json(changed / "config.json", rope_theta=20000.0)
    with pytest.raises(
        CheckpointError, match=r"is not what .*earlier was made from \(its config\.json or its weights differ\)"
    ):
        export(changed, tmp_path / "out", codes_from=earlier)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"max_position_embeddings": 48}, r"the context is 64 tokens there and at most 48 in the source"),
        ({"max_position_embeddings": 48, "hidden_size": 144}, r"shape \[72, 72\] there and \[144, 144\] in the source"),
        ({"vocab_size": 212}, r"embed_tokens.weight is shape \[210, 72\] there and \[212, 72\] in the source"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 there and 3 in the source"),
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "architecture is Llama.* there and Mistral.* in the source",
        ),
    ],
    ids=str,
)
def test_another_models_codes(earlier: Path, tmp_path: Path, other: dict[str, Any], message: str) -> None:
    """Nobody asked for a context length, so that none is complained about."""
    source = make_checkpoint(tmp_path / "other", **other)
    for attempt in (export, dry_run):
        with pytest.raises(OptionError, match=rf"codes from .*{message}: it is an export of another model"):
            attempt(source, tmp_path / "out", codes_from=earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_from_the_command_line(source: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(source), "-o", str(tmp_path / "out"), "--codes-from", str(earlier), "--lm-head", "int4", "--trained"]
    assert main(command) == 0
    assert "int4" in capsys.readouterr().out
    assert main([*command, "--force", "--stages", "4"]) == USER_ERROR
    assert "were made with 3, got 4" in capsys.readouterr().err


def test_is_for_checkpoints(earlier: Path, tmp_path: Path) -> None:
    from fairy2i_export import rewrite_onnx

    with pytest.raises(OptionError, match="--codes-from is for checkpoints only"):
        rewrite_onnx(earlier / "model.onnx", tmp_path / "out", codes_from=earlier)
