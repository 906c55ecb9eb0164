"""fairy2i-export model.onnx as a user meets it: options, what is printed, one clear message for every mistake."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import fairy2i_export
from fairy2i_export.commands.export import main
from fairy2i_export.errors import ModelError
from fairy2i_export.output.progress import Observer
from fairy2i_runtime import core
from rewrite_helpers import rewrite_onnx, run, save_model

Run = Callable[..., tuple[int, str, str]]
rng = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    nodes = "a = MatMul (x, up)\nb = Relu (a)\ny = MatMul (b, down)"
    shapes = {"up": (64, 128), "down": (128, 64)}
    initializers = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = {"x": ("float", ["rows", 64])}
    return save_model(tmp_path / "net.onnx", nodes, inputs, {"y": "float"}, initializers, external=True)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "150")

    def run_command(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_a_plain_run(call: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("net.onnx")
    assert code == 0
    folder = tmp_path / "net-fairy2i"
    # no library in it: the folder is the same wherever it was made, and works on any platform
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "model.onnx", "model.onnx.data", "rewrite.json"]
    assert re.search(r"layers rewritten +│ 2 of 2", out)
    assert "find 2, select 2, resolve 2, recognise 0, replace 2, fuse bias 0" in out
    assert re.search(r"warning: 2 matrices were quantized, which changed them by 3\d% on average", err)
    report = json.loads((folder / "rewrite.json").read_text())
    assert (report["source"], report["path"]) == ("net.onnx", "net-fairy2i")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert report["source_sha256"] == {p.key: p.value for p in model.metadata_props}["fairy2i.source_sha256"]
    packed = next(tensor for tensor in model.graph.initializer if tensor.name == "node2.packed")
    entry = {item.key: item.value for item in packed.external_data}
    assert entry["location"] == "model.onnx.data"
    assert int(entry["offset"]) % 4096 == 0
    assert call("net.onnx", "--trained", "-q", "-o", "quiet") == (0, "", "")


def test_every_option(call: Run, source: Path, tmp_path: Path) -> None:
    arguments = ["--stages", 3, "--profile", "fp32", "--row-multiplier", "rms", "--include", "*[pn]", "--exclude", "down*"]
    code, out, _ = call(source, "-o", tmp_path / "out", *arguments, "--trained")
    assert code == 0
    assert re.search(r"left +│ 1 --exclude \(", out)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert metadata["fairy2i.stages"] == "3"
    assert (metadata["fairy2i.profile"], metadata["fairy2i.row_multiplier"]) == ("fp32", "rms")


def test_a_dry_run_writes_nothing(call: Run, source: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = call(source, "--dry-run", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "(dry run: nothing was written)" in out
    assert "2 of 2" in out
    assert re.search(r"node2 +│ node2 +│ down +│ MatMul +│ 64 x 128 +│ 2 +│ quantized", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    report = fairy2i_export.rewrite_onnx(source, dry_run=True)
    expected = report.output_bytes
    written = fairy2i_export.rewrite_onnx(source, tmp_path / "out")
    assert abs(written.output_bytes - expected) < 20_000  # the definition of the operator comes on top
    assert [x.error for x in report.rewritten] == [None, None]


def test_force_replaces_only_its_own(call: Run, source: Path, tmp_path: Path) -> None:
    assert call(source, "-o", tmp_path / "out", "-q")[0] == 0
    code, _, err = call(source, "-o", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already" in err
    assert call(source, "-o", tmp_path / "out", "-q", "--force")[0] == 0
    code, _, err = call(source, "-o", tmp_path, "--force")
    assert code == 2
    assert "holds the source model and is not replaced" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    code, _, err = call(source, "-o", tmp_path / "other", "--force")
    assert code == 2
    assert "no model.onnx or rewrite.json in it" in err


def old_opset(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 13
    onnx.save(model, path)


def no_opset(path: Path) -> None:
    model = onnx.load(path)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)


def dynamic(path: Path) -> None:
    save_model(path, "y = MatMul (x, z)", {"x": ("float", [4, 32]), "z": ("float", [32, 8])}, {"y": "float"}, {})


def no_linear(path: Path) -> None:
    save_model(path, "y = Relu (x)", {"x": ("float", [4, 32])}, {"y": "float"}, {})


def only_odd(path: Path) -> None:
    initializers = {"w": np.ones((32, 7), np.float32)}
    save_model(path, "y = MatMul (x, w)", {"x": ("float", [4, 32])}, {"y": "float"}, initializers)


def no_data(path: Path) -> None:
    path.with_name("net.onnx.data").unlink()


def short_data(path: Path) -> None:
    os.truncate(path.with_name("net.onnx.data"), 5000)


def outside_data(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../net.onnx.data"
    path.write_bytes(model.SerializeToString())


def nothing(path: Path) -> None:
    """Nothing is wrong with the model."""


MISTAKES: list[Any] = [
    ("opset too old", old_opset, [], "opset 13 is too old: the operator's definition needs opset 18 or newer"),
    ("no standard operators", no_opset, [], "imports no standard ONNX operators"),
    ("dynamic weights", dynamic, [], "none of its 1 products can be rewritten (1 x the matrix is computed at run time)"),
    ("no linear", no_linear, [], "holds no MatMul and no Gemm"),
    ("odd only", only_odd, [], "odd dimension: 32 x 7"),
    ("external data missing", no_data, [], "its external data file net.onnx.data is missing"),
    ("external data too short", short_data, [], "has 5,000 bytes, but tensor"),
    ("external data elsewhere", outside_data, [], "outside the model's folder"),
    ("truncated", lambda p: os.truncate(p, 100), [], "cannot be read as an ONNX model"),
    ("no model", lambda p: p.write_text("<html>"), [], "cannot be read as an ONNX model"),
    ("missing", lambda p: p.unlink(), [], "no such file; expected an ONNX model"),
    (
        "include matches nothing",
        nothing,
        ["--include", "*.q_proj"],
        "--include '*.q_proj' matches no linear layer; they are called",
    ),
    ("bad glob", nothing, ["--exclude", "[x"], "--exclude '[x' matches no linear layer"),
    ("everything excluded", nothing, ["--exclude", "*"], "2 x --exclude"),
    ("stages", nothing, ["--stages", "7"], "stages: expected a number from 1 to 4, got 7"),
    ("profile", nothing, ["--profile", "bf16"], "profile: expected one of"),
    ("row multiplier", nothing, ["--row-multiplier", "max"], "row multiplier: expected one of"),
    ("checkpoint option", nothing, ["--lm-head", "int8"], "--lm-head is for checkpoints only"),
    ("checkpoint option 2", nothing, ["--context-length", "128"], "--context-length is for checkpoints only"),
    ("checkpoint option 3", nothing, ["--kv-cache", "int8"], "--kv-cache is for checkpoints only"),
    ("checkpoint option 4", nothing, ["--rope-scaling", "yarn:2"], "--rope-scaling is for checkpoints only"),
    ("jobs", nothing, ["--jobs", "0"], "jobs: expected a number from 1, got 0"),
]


@pytest.mark.parametrize(("damage", "options", "words"), [pytest.param(*rest, id=name) for name, *rest in MISTAKES])
def test_mistakes(call: Run, source: Path, tmp_path: Path, damage: Any, options: list[str], words: str) -> None:
    damage(source)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = call(source, "-o", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert err.startswith("fairy2i-export: error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_called_like_a_model(call: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    code, _, err = call(tmp_path / "folder.onnx")
    assert code == 2
    assert "is a folder; expected an ONNX model" in err


@pytest.fixture
def forget_library() -> Iterator[Callable[[], None]]:
    """Makes the next use of the operator library look for it again; done once more after the test."""
    yield core._library.cache_clear
    core._library.cache_clear()


def test_without_the_library(
    call: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_library: Callable[[], None]
) -> None:
    """Nothing can be quantized then, but a model that needs no quantizing is written."""
    rewritten = rewrite_onnx(source, tmp_path / "first").path
    assert rewritten is not None
    forget_library()
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "nothing.so"))
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = call(source, "-o", tmp_path / "out", "--trained")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "error: the operator library, which also quantizes, cannot be used: FAIRY2I_LIBRARY names" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert call(source, "--dry-run", "-q") == (2, "", err)
    code, _, err = call(rewritten / "model.onnx", "-o", tmp_path / "out", "-q")
    assert (code, err) == (0, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"SHA256SUMS", "model.onnx", "model.onnx.data", "rewrite.json"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path, error: type[BaseException]) -> None:
    """Rewriting starts from the beginning again: there is nothing to be kept for that."""

    class Interrupting(Observer):
        title = ""

        def phase(self, title: str, total: int) -> None:
            self.title = title

        def advance(self, amount: int) -> None:
            if self.title == "quantizing":
                raise error

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error):
        fairy2i_export.rewrite_onnx(source, tmp_path / "out", observer=Interrupting())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_an_unfinished_export_left_does_not_get_in(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".out.partial" / "folder"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder.parent / "journal").write_text("{}")
    rewrite_onnx(source, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert not folder.parent.exists()


def test_threads_do_not_change_the_bytes(tmp_path: Path) -> None:
    w = rng.standard_normal((1024, 1536)).astype(np.float32)
    source = save_model(tmp_path / "m.onnx", "y = MatMul (x, w)", {"x": ("float", [2, 1024])}, {"y": "float"}, {"w": w})
    data = []
    for jobs in (1, 3):
        report = fairy2i_export.rewrite_onnx(source, tmp_path / f"out{jobs}", jobs=jobs, row_multiplier="rms")
        assert report.path is not None
        data.append((report.path / "model.onnx.data").read_bytes())
    assert data[0] == data[1]


def test_a_failure_while_writing_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ModelError("the weights changed")

    monkeypatch.setattr(ir, "save", broken)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelError):
        rewrite_onnx(source, tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_weights_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two matrices are alive at once: what a layer needs is made in its turn."""
    import gc
    import weakref

    import fairy2i_export.rewrite.operands as weights

    nodes = "a = MatMul (x, w0)\nb = MatMul (a, w1)\ny = MatMul (b, w2)"
    initializers = {f"w{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(3)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", [2, 64])}, {"y": "float"}, initializers, external=True)
    alive: list[weakref.ref[Any]] = []
    find_scales = weights.find_scales

    def watched(matrix: Any, *arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(matrix))
        return find_scales(matrix, *arguments, **options)

    monkeypatch.setattr(weights, "find_scales", watched)
    rewrite_onnx(source, tmp_path / "out")
    assert len(alive) == 3


@pytest.mark.large
def test_a_model_above_two_gigabytes(tmp_path: Path) -> None:
    """2.2 GB of untouched table in external data, and one matrix to rewrite; a sparse file, so the source takes no space."""
    rows, width = 550_000, 1024
    w = rng.standard_normal((width, 64)).astype(np.float32)
    source = save_model(
        tmp_path / "m.onnx",
        "e = Gather (table, ids)\ny = MatMul (e, w)",
        {"ids": ("int64", [3])},
        {"y": "float"},
        {"table": np.zeros((1, 1), np.uint16).view(ml_dtypes.bfloat16).astype(np.float32), "w": w},
        external=True,
    )
    model = onnx.load(source, load_external_data=False)
    table = next(t for t in model.graph.initializer if t.name == "table")
    table.dims[:] = [rows, width]
    entries = {e.key: e for e in table.external_data}
    entries["location"].value = "table.data"
    entries["offset"].value, entries["length"].value = "0", str(4 * rows * width)
    source.write_bytes(model.SerializeToString())
    with (tmp_path / "table.data").open("wb") as file:
        file.truncate(4 * rows * width)
        file.seek(4 * 7 * width)
        file.write(np.ones(width, np.float32).tobytes())
    report = rewrite_onnx(source, tmp_path / "out")
    assert report.output_bytes > 2 * 2**30
    assert len(report.rewritten) == 1
    y = run(tmp_path / "out" / "model.onnx", {"ids": np.array([0, 7, rows - 1])}, library=True)[0]
    assert np.abs(y[1]).max() > 1
    np.testing.assert_array_equal(y[[0, 2]], 0)
