"""The quality benchmarks run and write what they promise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from conftest import ROOT
from export_helpers import make_checkpoint

sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import converted
import joint_starts
import untrained
import weight_error

from fairy2i_export import export
from fairy2i_runtime import load
from fairy2i_runtime.measure.perplexity import model_scorer
from fairy2i_runtime.text.tokenizer import Tokenizer


def test_weight_errors(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", dtype=np.float32, num_hidden_layers=1)
    weight_error.main([source], size=128, json_file=tmp_path / "errors.json")
    results = json.loads((tmp_path / "errors.json").read_text())
    assert set(results) == {"Gaussian 128 x 128", "source"}
    for table in results.values():
        assert len(table) == 2 * 3 * 4
        for rows in ("none", "rms", "fitted"):
            assert table[f"joint, {rows}, 4"] < 0.7 * table[f"greedy, {rows}, 4"]
        assert table["joint, fitted, 4"] < table["joint, rms, 4"]


def test_perplexity_without_training(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", dtype=np.float32, num_hidden_layers=1)
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog " * 5)
    untrained.main(
        source, tmp_path / "text", tokens=40, stages="1,3", row_multipliers="rms", json_file=tmp_path / "results.json"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["quantizer"], r["stages"]) for r in results] == [("greedy", 1), ("greedy", 3), ("joint", 1), ("joint", 3)]
    assert results[3]["error"] < results[1]["error"]
    assert all(r["perplexity"] > 1 for r in results)


def test_the_search_for_starts_finds_the_table(capsys) -> None:  # type: ignore[no-untyped-def]
    joint_starts.main("gauss", stages=2, seconds=0.5, entries=1 << 12)
    best = float(capsys.readouterr().out.splitlines()[1].split()[0])
    assert 0.32 < best < 0.345
    joint_starts.main("gauss", stages=3, seconds=1, entries=1 << 12, largest=1.5)
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(np.max(json.loads(line.split(" ", 1)[1])) <= 1.5 for line in lines)


def test_perplexity_of_converted_models(tmp_path: Path) -> None:
    """The parts are consecutive, and all tokens but the first of a window are scored."""
    source = make_checkpoint(tmp_path / "source", dtype=np.float32, num_hidden_layers=1)
    text = "the quick brown fox jumps over the lazy dog " * 5
    (tmp_path / "text").write_text(text)
    quantized = export(source, tmp_path / "quantized", stages=2, trained=True, lm_head="float").path
    first, second = converted.parts_of(quantized, text, [16, 8], 8)
    ids = [token for part in (first, second) for window in part.windows for token in window.ids]
    assert ids == Tokenizer.load(quantized).encode(text, add_special_tokens=False)[:24]
    converted.main(
        [quantized], tmp_path / "text", kernels="exact,lut", tokens="16,8", window=8, json_file=tmp_path / "results.json"
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["model"], r["kernel"]) for r in results] == [("quantized", "exact"), ("quantized", "lut")]
    model = load(quantized, kernel="exact")
    for part, figure in zip((first, second), results[0]["perplexity"], strict=True):
        log_probs = np.concatenate([model_scorer(model)(window.ids) for window in part.windows])
        assert len(log_probs) == 7 * len(part.windows)
        assert abs(np.log(figure) + log_probs.mean()) < 1e-9
    assert results[0]["perplexity"] != results[1]["perplexity"]
