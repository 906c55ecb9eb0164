"""What a rewritten model says of itself, what verify makes of it, and that recovered codes are searched for once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from tokenizers import Tokenizer

from export_helpers import make_checkpoint
from fairy2i_export import export, rewrite_onnx
from fairy2i_export.codes.recover import stage_sums
from fairy2i_export.commands.tools import main
from rewrite_helpers import operator_matrices
from runtime_models import CHECKPOINT


def metadata(folder: Path) -> dict[str, str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {p.key.removeprefix("fairy2i."): p.value for p in model.metadata_props}


def companions(source: Path, folder: Path) -> None:
    """What a folder of the runtime needs beside the model."""
    for name in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())


def test_a_dense_export_that_is_rewritten_no_longer_says_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(CHECKPOINT, tmp_path / "dense", backend="dense")
    model = onnx.load(tmp_path / "dense" / "model.onnx", load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = "some.other.tool", "kept"
    onnx.save(model, tmp_path / "dense" / "model.onnx")
    report = rewrite_onnx(tmp_path / "dense" / "model.onnx", tmp_path / "out")
    assert {linear.origin for linear in report.rewritten} == {"recovered"}
    before, found = metadata(tmp_path / "dense"), metadata(tmp_path / "out")
    assert before["backend"] == "dense"
    for key in ("backend", "calibration", "scales", "col_multiplier", "lm_head"):
        assert key not in found
    assert (found["profile"], found["quantizer"], found["row_multiplier"]) == ("recovered",) * 3
    assert (found["stages"], found["source"], found["some.other.tool"]) == ("2", "model.onnx", "kept")
    for key in ("format_version", "architecture", "embedding", "kv_cache"):  # of the graph, which is the same
        assert found[key] == before[key]

    companions(tmp_path / "dense", tmp_path / "out")
    assert main(["verify", str(tmp_path / "out"), "--against", str(CHECKPOINT)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "codes were recovered from a model that was dequantized already" in said
    assert "so they are not compared with it" in said
    assert "layers differ" not in said


def test_a_rewritten_folder_has_all_tokens_and_all_ends(tmp_path: Path) -> None:
    """The files of a folder that another tool made: a token and an end that genai_config.json and tokenizer.json lack."""
    source = make_checkpoint(tmp_path / "source")
    folder = export(source, tmp_path / "dense", backend="dense").path
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "pad_token": "<pad>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 999]}))
    found = rewrite_onnx(folder / "model.onnx", tmp_path / "out").path
    vocabulary = Tokenizer.from_file(str(found / "tokenizer.json")).get_vocab()
    assert (vocabulary["<end>"], vocabulary["<pad>"]) == (200, 201)
    assert json.loads((found / "genai_config.json").read_text())["model"]["eos_token_id"] == [2, 7, 200]
    # nothing to add: nothing changes
    again = rewrite_onnx(found / "model.onnx", tmp_path / "again").path
    for name in ("genai_config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (found / name).read_bytes()


def test_the_codes_of_a_recovered_model_are_those_of_the_export(tmp_path: Path) -> None:
    export(CHECKPOINT, tmp_path / "whole")
    export(CHECKPOINT, tmp_path / "dense", backend="dense")
    rewrite_onnx(tmp_path / "dense" / "model.onnx", tmp_path / "out")
    whole, out = operator_matrices(tmp_path / "whole"), operator_matrices(tmp_path / "out")
    assert whole.keys() == out.keys()


def test_layers_that_were_there_keep_what_was_said_of_them(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    export(source, tmp_path / "part", exclude=["*mlp*"], stages=3, quantizer="joint")
    rewrite_onnx(tmp_path / "part" / "model.onnx", tmp_path / "out", stages=1, row_multiplier="rms")
    found = metadata(tmp_path / "out")
    assert found["stages"] == "1,3"
    assert found["quantizer"] == "joint,greedy"
    assert found["row_multiplier"] == "none,rms"


def test_codes_are_recovered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is what takes the time; when the layer is written its codes are read off with what was found."""
    report = export(CHECKPOINT, tmp_path / "dense", backend="dense")
    searched: list[Any] = []
    search = stage_sums._one_matrix

    def counted(*arguments: Any) -> Any:
        found = search(*arguments)
        if found is not None:
            searched.append(found)
        return found

    monkeypatch.setattr(stage_sums, "_one_matrix", counted)
    rewritten = rewrite_onnx(tmp_path / "dense" / "model.onnx", tmp_path / "out").rewritten
    assert len(searched) == 2 * len(rewritten) == 2 * len(report.rewritten)  # U and W
