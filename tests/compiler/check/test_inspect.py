"""fairy2i inspect: what it says about a file, checked against the checkpoint and the files."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.codes.layout import packed_size
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.inspect import histogram
from fairy2i_export.commands.tools import main
from fairy2i_export.source.checkpoint import open_checkpoint
from runtime_models import CHECKPOINT, copy_of_stories, stories_folder


@pytest.fixture(scope="module")
def report() -> dict:
    return inspect_json(stories_folder())


def inspect_json(*arguments: object) -> dict:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(out.getvalue())


def test_layers_are_those_of_the_checkpoint(report):
    checkpoint = open_checkpoint(CHECKPOINT)
    assert len(report["layers"]) == report["totals"]["layers"] == 36
    for layer in report["layers"]:
        weight = checkpoint.read(f"{layer['name']}.weight")
        q = quantize(weight, 2, row_multiplier="rms")
        assert layer["shape"] == list(weight.shape)
        assert layer["stages"] == 2
        np.testing.assert_array_equal(np.array(layer["scales"], np.float32), q.scales)
        counts = [
            [np.bincount(q.codes[stage, matrix].ravel(), minlength=4).tolist() for matrix in (0, 1)] for stage in (0, 1)
        ]
        assert layer["code_counts"] == counts  # padding is not counted
        assert layer["row_multiplier"]["max"] == pytest.approx(q.row_multiplier.max())
        assert layer["col_multiplier"] is None
        assert layer["bytes"] == packed_size(q.n, q.m, 2) + 32 + 4 * 2 * q.n
        assert layer["bits_per_weight"] == pytest.approx(8 * layer["bytes"] / weight.size)


def test_sizes_and_memory(report):
    folder = stories_folder()
    assert report["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    sizes = [
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t.data_type)).itemsize * int(np.prod(t.dims))
        for t in graph.initializer
    ]
    assert sum(report["tensor_bytes"].values()) == sum(sizes)
    assert report["tensor_bytes"]["embedding"] == 512 * 64 * 2
    assert (
        report["tensor_bytes"]["packed codes"]
        + report["tensor_bytes"]["scales"]
        + report["tensor_bytes"]["row and column multipliers"]
        == (report["totals"]["bytes"])
    )
    assert report["memory"]["kv_cache"] == 2 * 5 * 4 * 8 * 4 * 512
    assert report["memory"]["total"] == sum(value for key, value in report["memory"].items() if key != "total")
    assert (report["context_length"], report["vocab_size"]) == (512, 512)
    assert inspect_json(folder, "--context-length", 100)["memory"]["kv_cache"] == 2 * 5 * 4 * 8 * 4 * 100


def test_memory_agrees_with_info(report, capsys):
    assert main(["info", str(stories_folder()), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["memory"] == report["memory"]


def test_a_lone_model_file(report, tmp_path):
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(stories_folder() / name, tmp_path / name)
    found = inspect_json(tmp_path / "model.onnx")
    assert found["layers"] == report["layers"]
    assert found["metadata"] == report["metadata"]
    assert found["context_length"] is found["memory"] is None
    assert set(found["files"]) == {"model.onnx", "model.onnx.data"}
    assert inspect_json(stories_folder() / "model.onnx") == report


def test_other_ways_of_storing_are_counted(tmp_path):
    source = make_checkpoint(tmp_path / "source", attention_bias=True)
    export(source, tmp_path / "model", stages=3, lm_head="int4", embedding="int8", exclude=["*.down_proj"])
    found = inspect_json(tmp_path / "model")
    assert len(found["layers"]) == 12
    assert {layer["stages"] for layer in found["layers"]} == {3}
    assert {layer["bias"] for layer in found["layers"] if ".self_attn." in layer["name"]} == {True}
    sizes = found["tensor_bytes"]
    assert sizes["other linear layers"] == 4 * 2 * 72 * 150 + 210 * 3 * (16 + 4)
    assert sizes["embedding"] == 210 * 72 + 4 * 210 * 3
    assert "biases" in sizes


def test_tables(capsys):
    assert main(["inspect", str(stories_folder()), "--layers", "*.2.mlp.*", "--layers", "lm_head"]) == 0
    out = capsys.readouterr().out
    assert "2.mlp.down_proj" in out
    assert "512x64" in out
    assert "q_proj" not in out
    assert "packed codes" in out
    assert "895.8 kB at 512 tokens" in out
    assert "of as many last ones as a host asks for" in out
    assert histogram(np.array([25, 25, 25, 25])) == "▄▄▄▄"
    assert histogram(np.array([50, 0, 50, 0])) == "█ █ "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["/absent"], "/absent does not exist"),
        (["/absent.onnx"], "/absent.onnx does not exist"),
        (["{}/README.md"], "is a file: expected the folder"),
        (["{}", "--layers", "x"], "they are called like model.layers.0.self_attn.q_proj"),
        (["{}", "--context-length", "513"], "--context-length: expected 1 to 512"),
        ([str(CHECKPOINT)], "it holds a checkpoint to be exported first"),
    ],
)
def test_mistakes_give_one_message(capsys, arguments, message):
    assert main(["inspect", *(argument.format(stories_folder()) for argument in arguments)]) == 2
    check_one_message(capsys, message)


def check_one_message(capsys, message: str) -> None:
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_damaged_files_give_one_message(capsys, tmp_path):
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    assert main(["inspect", str(tmp_path / "noise.onnx")]) == 2
    check_one_message(capsys, "noise.onnx: expected an ONNX model")
    folder = copy_of_stories(tmp_path / "model")
    (folder / "model.onnx.data").unlink()
    assert main(["inspect", str(folder)]) == 2
    check_one_message(capsys, "expected its data file model.onnx.data beside it, found none; copy the model again")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), tmp_path / "empty.onnx")
    assert main(["inspect", str(tmp_path / "empty.onnx")]) == 2
    check_one_message(capsys, "expected Fairy2iMatMul nodes")


DAMAGE = {
    "empty": (lambda folder: (folder / "model.onnx").write_bytes(b""), "model.onnx: expected Fairy2iMatMul nodes"),
    "cut off": (
        lambda folder: os.truncate(folder / "model.onnx", 3000),
        "model.onnx: expected an ONNX model, but it cannot",
    ),
    "a page": (
        lambda folder: (folder / "model.onnx").write_text("<html>"),
        "model.onnx: expected an ONNX model, but it cannot",
    ),
    "no data": (lambda folder: (folder / "model.onnx.data").unlink(), "data file model.onnx.data beside it, found none"),
    "less data": (lambda folder: os.truncate(folder / "model.onnx.data", 70_000), "bytes in its data file model.onnx.data"),
    "empty data": (lambda folder: os.truncate(folder / "model.onnx.data", 0), "bytes in its data file model.onnx.data"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_command_says_what_is_damaged(capsys, tmp_path, kind):
    folder = copy_of_stories(tmp_path / "model")
    change, message = DAMAGE[kind]
    change(folder)
    page = str(tmp_path / "report.html")
    for command in (
        ["inspect", str(folder)],
        ["inspect", str(folder / "model.onnx")],
        ["verify", str(folder)],
        ["verify", str(folder), "--against", str(CHECKPOINT)],
        ["report", str(folder), "--against", str(CHECKPOINT), "-o", page],
    ):
        assert main(command) == 2, command
        check_one_message(capsys, message)
    assert export_main([str(CHECKPOINT), "-o", str(tmp_path / "out"), "--codes-from", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"codes from {folder}: {folder}" in error
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_rewritten_model_is_looked_at_and_not_run(capsys, tmp_path):
    out = tmp_path / "again"
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="only")],
        "one layer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 64])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    source = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), source)
    assert export_main([str(source), "-o", str(out)]) == 0
    capsys.readouterr()
    by_folder, by_file = inspect_json(out), inspect_json(out / "model.onnx")
    assert by_folder["layers"] == by_file["layers"]
    assert [layer["shape"] for layer in by_folder["layers"]] == [[64, 64]]
    assert "rewrite.json" in by_folder["files"]
    for command in (
        ["verify", str(out)],
        ["verify", str(out / "model.onnx")],
        ["info", str(out)],
        ["generate", str(out), "x"],
    ):
        assert main(command) == 2
        check_one_message(capsys, f"run it with onnxruntime, look at it with fairy2i inspect {out / 'model.onnx'}")
    assert main(["report", str(stories_folder()), "--against", str(source), "-o", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "is an ONNX model; expected a checkpoint" in error
    assert "export()" not in error
