"""Graphs that onnxruntime dies of, or that no exporter wrote: refused before it sees them, in one line."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

import fairy2i_runtime
from fairy2i_export.onnx_graph.function import matmul_function
from fairy2i_runtime.engine.graph.call import GraphError
from fairy2i_runtime.engine.graph.check import check_graph, known_operators
from fairy2i_runtime.engine.graph.function import FUNCTION_DIGESTS, digest
from fairy2i_runtime.engine.graph.model_file import read_model
from fairy2i_runtime.engine.graph.wire import Reader, WireError
from fairy2i_runtime.errors import Fairy2iRuntimeError, ModelFolderError
from runtime_models import copy_of_stories, stories_folder

Change = Callable[[onnx.ModelProto], object]


def node(model: onnx.ModelProto, operator: str, number: int = 0) -> onnx.NodeProto:
    return [found for found in model.graph.node if found.op_type == operator][number]


def attribute(operator: str, name: str, value: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for found in node(model, operator).attribute:
            if found.name == name:
                found.i = value
                return
        node(model, operator).attribute.append(helper.make_attribute(name, value))

    return change


def operand(operator: str, index: int, name: str, number: int = 0) -> Change:
    def change(model: onnx.ModelProto) -> None:
        found = node(model, operator, number)
        while len(found.input) <= index:
            found.input.append("")
        found.input[index] = name

    return change


def sparse(model: onnx.ModelProto) -> None:
    found = model.graph.sparse_initializer.add()
    found.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "sparse"))
    found.indices.CopyFrom(numpy_helper.from_array(np.array([0, 5, 10**6]), "places"))
    found.dims.append(10)


def location(name: str, key: str = "location") -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(found for found in model.graph.initializer if found.external_data)
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = name

    return change


def default_logits(values: npt.NDArray[np.int64] | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        found = next(found for found in model.graph.initializer if found.name == "num_logits_to_keep")
        if values is None:
            model.graph.initializer.remove(found)
        else:
            found.CopyFrom(numpy_helper.from_array(values, found.name))

    return change


def subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    branches = {"then_branch": inner, "else_branch": inner}
    model.graph.node.append(helper.make_node("If", ["hidden"], ["x"], **branches))


def second_function(model: onnx.ModelProto) -> None:
    found = model.functions.add()
    found.CopyFrom(model.functions[0])
    found.domain, found.name = "com.microsoft", "GroupQueryAttention"


def changed_body(model: onnx.ModelProto) -> None:
    next(found for found in model.functions[0].node if found.op_type == "Add").op_type = "Div"


def dims(name: str, index: int, value: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for found in (*model.graph.input, *model.graph.output):
            if found.name == name:
                found.type.tensor_type.shape.dim[index].dim_value = value

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "Max without its second input": (operand("Max", 1, ""), r"\(Max\)"),
    "Squeeze of nothing": (operand("Squeeze", 0, ""), r"\(Squeeze\)"),
    "2^40 heads of keys": (attribute("GroupQueryAttention", "kv_num_heads", 1 << 40), "kv_num_heads from 1"),
    "no heads of keys": (attribute("GroupQueryAttention", "kv_num_heads", 0), "kv_num_heads from 1"),
    "other heads": (attribute("GroupQueryAttention", "num_heads", 12), r"input 0"),
    "heads that do not divide": (attribute("GroupQueryAttention", "kv_num_heads", 3), "kv_num_heads as in the cache"),
    "rotation of heads of 8": (attribute("GroupQueryAttention", "do_rotary", 1), "heads of a multiple of 16"),
    "a window": (attribute("GroupQueryAttention", "local_window_size", 5), "no attributes local_window_size"),
    "lengths from elsewhere": (operand("GroupQueryAttention", 5, "input_ids"), "seqlens"),
    "a bias from elsewhere": (operand("GroupQueryAttention", 10, "rotary.cos"), "bias"),
    "attention sinks": (operand("GroupQueryAttention", 11, "rotary.cos"), "no inputs"),
    "the cache of another layer": (operand("GroupQueryAttention", 3, "past_key_values.1.key"), "one layer"),
    "tokens as positions": (operand("RotaryEmbedding", 1, "input_ids"), "positions"),
    "a part of a head": (attribute("RotaryEmbedding", "rotary_embedding_dim", 1 << 30), "heads"),
    "interleaved twice": (attribute("RotaryEmbedding", "interleaved", 7), "interleaved"),
    "a bias that another layer makes": (operand("Fairy2iMatMul", 3, "model.layers.0.input_layernorm/output"), "initializer"),
    "a weight of another shape": (operand("Fairy2iMatMul", 2, "rotary.cos"), "input 2"),
    "another K": (attribute("Fairy2iMatMul", "K", 128), "input 0"),
    "another N": (attribute("Fairy2iMatMul", "N", 1 << 30), "node"),
    "a sparse initializer": (sparse, "sparse initializers"),
    "a sub-graph": (subgraph, "a sub-graph"),
    "a file above the folder": (location("../model.onnx.data"), "a file of the folder"),
    "a file anywhere": (location("/etc/passwd"), "a file of the folder"),
    "a file with a drive": (location("C:model.onnx.data"), "a file of the folder"),
    "the folder itself": (location(".."), "a file of the folder"),
    "a negative offset": (location("-1", "offset"), "offset and length"),
    "an offset beyond the end": (location("999999999", "offset"), "ends too early"),
    "another length": (location("8", "length"), "bytes of data"),
    "a function for another operator": (second_function, "GroupQueryAttention"),
    "another function body": (changed_body, "a function"),
    "a vocabulary of 9": (dims("logits", 2, 9), "output logits"),
    "a cache of other heads": (dims("past_key_values.0.key", 1, 2), "kv_num_heads as in the cache|one shape"),
    "another default number of logits": (default_logits(np.array([3])), "expected 0 as its default"),
    "a number of logits of another form": (default_logits(np.array(0)), "expected 0 as its default"),
    "no default number of logits": (default_logits(None), "with a default"),
    "numbers of logits for each text": (dims("num_logits_to_keep", 0, 2), r"int64 \[1\]"),
    "logits from elsewhere": (operand("Slice", 1, "const/1", -1), "first column of logits"),
    "a slice of other columns": (operand("Slice", 2, "const/1", -1), "the last columns"),
    "a slice of the width": (operand("Slice", 3, "const/0", -1), "the last columns"),
    "no name for an operator": (lambda m: setattr(node(m, "Mul"), "op_type", ""), "an operator"),
    "an operator of another domain": (lambda m: setattr(node(m, "Mul"), "domain", "x"), "an operator"),
    "an output that was wanted elsewhere": (lambda m: node(m, "Mul").output.append("more"), "other outputs"),
    "a value twice": (lambda m: m.graph.node.append(m.graph.node[0]), "twice"),
    "a node before its input": (lambda m: m.graph.node.insert(0, m.graph.node.pop()), "nowhere|later"),
    "another operator set": (lambda m: setattr(m.opset_import[0], "version", 7), "version 7"),
    "training": (lambda m: m.training_info.add(), "training"),
    "a name with control characters": (lambda m: setattr(node(m, "Max"), "op_type", "M\x1b[31m"), r"\\x1b"),
}


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return onnx.load(stories_folder() / "model.onnx", load_external_data=False)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_graphs_are_refused(exported: onnx.ModelProto, name: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    change, words = CHANGES[name]
    change(model)
    data = model.SerializeToString()
    assert data != exported.SerializeToString()
    with pytest.raises(GraphError, match=words) if "control" not in name else pytest.raises(GraphError):
        check_graph(data, stories_folder(), 512)


def test_load_says_it_in_one_line(tmp_path: Path, exported: onnx.ModelProto) -> None:
    folder = copy_of_stories(tmp_path / "model")
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    CHANGES["a name with control characters"][0](model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFolderError, match="not a decoder as fairy2i-export writes it") as caught:
        fairy2i_runtime.load(folder)
    assert str(caught.value).isprintable()
    ran = subprocess.run(
        [sys.executable, "-m", "fairy2i_runtime", "generate", str(folder), "Once"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)


def test_an_unchanged_graph_passes_and_a_longer_context_does_not(exported: onnx.ModelProto) -> None:
    check_graph(exported.SerializeToString(), stories_folder(), 512)
    with pytest.raises(GraphError, match="fewer than the context of 100000"):
        check_graph(exported.SerializeToString(), stories_folder(), 100_000)


def test_trusted_graphs_run(tmp_path: Path, exported: onnx.ModelProto) -> None:
    folder = copy_of_stories(tmp_path / "model")
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    model.graph.node.append(helper.make_node("Identity", ["input_ids"], ["unused"]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFolderError, match="trust_graph=True"):
        fairy2i_runtime.load(folder)
    trusted = fairy2i_runtime.load(folder, trust_graph=True)
    expected = fairy2i_runtime.load(stories_folder()).generate("Once", max_new_tokens=5).token_ids
    assert trusted.generate("Once", max_new_tokens=5).token_ids == expected


def test_the_body_that_is_exported_is_known() -> None:
    from onnx_ir import serde

    for layers, opset, rounding in itertools.product((1, 2, 3), (18, 21), (False, True)):
        model = onnx.ModelProto()
        model.graph.name = "g"
        model.functions.append(serde.serialize_function(matmul_function(opset, layers=layers, rounding=rounding)))
        assert digest(read_model(model.SerializeToString())["functions"][0]) in FUNCTION_DIGESTS


def test_the_reader_finds_what_onnx_finds(exported: onnx.ModelProto) -> None:
    found = read_model(exported.SerializeToString())
    assert [entry["name"] for entry in found["graph"]["nodes"]] == [entry.name for entry in exported.graph.node]
    assert [entry["inputs"] for entry in found["graph"]["nodes"]] == [list(entry.input) for entry in exported.graph.node]
    assert [entry["dims"] for entry in found["graph"]["initializers"]] == [list(t.dims) for t in exported.graph.initializer]
    assert [entry.get("raw", b"") for entry in found["graph"]["initializers"]] == [
        t.raw_data for t in exported.graph.initializer
    ]
    assert {(entry.domain, entry.op_type) for entry in exported.graph.node} <= set(known_operators())


def test_damaged_bytes_are_errors_and_nothing_else(exported: onnx.ModelProto) -> None:
    """Every byte of the beginning changed, and every length cut: an error or a model, never another exception."""
    data = exported.SerializeToString()
    for at in range(0, 3000, 7):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            try:
                check_graph(changed, stories_folder(), 512)
            except GraphError:
                continue
    for bad in (b"\x0b", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x7f", b"\x08"):
        with pytest.raises(WireError):
            read_model(bad)


def test_a_message_of_too_many_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairy2i_runtime.engine.graph.wire.MOST_FIELDS", 1000)
    assert Reader()._left == 1000
    with pytest.raises(WireError, match="more than 1,000 fields"):
        read_model(b"\x3a\x82\x20" + b"\x0a\x00" * 2049)


def test_weights_cut_while_in_use_are_an_error(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    mapped = fairy2i_runtime.load(folder)
    copied = fairy2i_runtime.load(folder, copy=True)
    expected = copied.generate("Once", max_new_tokens=8).token_ids
    assert mapped.generate("Once", max_new_tokens=8).token_ids == expected
    os.truncate(folder / "model.onnx.data", 0)
    with pytest.raises(Fairy2iRuntimeError, match="was cut from"):
        mapped.generate("Once", max_new_tokens=8)
    assert copied.generate("Once", max_new_tokens=8).token_ids == expected


def test_links_into_a_store_of_files_are_followed(tmp_path: Path) -> None:
    """As caches of the Hugging Face hub have them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(stories_folder(), blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / path.name)
    assert fairy2i_runtime.load(snapshot, check="hashes").generate("Once", max_new_tokens=2).token_ids


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "genai_config.json"])
def test_files_that_are_devices(tmp_path: Path, name: str) -> None:
    folder = copy_of_stories(tmp_path / "model")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ModelFolderError, match=r"found a device|is missing|no genai_config"):
        fairy2i_runtime.load(folder)


def test_hashes(tmp_path: Path) -> None:
    from fairy2i_export.commands.tools import main

    folder = copy_of_stories(tmp_path / "model")
    assert fairy2i_runtime.load(folder, check="hashes").generate("Once", max_new_tokens=2).token_ids
    assert main(["verify", str(folder), "--integrity"]) == 0
    (folder / "README.md").write_text("edited")
    assert main(["verify", str(folder), "--integrity"]) == 0
    config = folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b"{", b"{ ", 1))
    with pytest.raises(ModelFolderError, match=r"config\.json has been changed"):
        fairy2i_runtime.load(folder, check="hashes")
    assert main(["verify", str(folder), "--integrity"]) == 1
    config.unlink()
    with pytest.raises(ModelFolderError, match=r"config\.json is missing"):
        fairy2i_runtime.load(folder, check="hashes")
    shutil.copy(stories_folder() / "config.json", config)
    (folder / "chat_template.jinja").write_text("x")
    with pytest.raises(ModelFolderError, match="was added after the export"):
        fairy2i_runtime.load(folder, check="hashes")
    for text in ("0" * 64 + "  ../x\n", "x", ""):
        (folder / "SHA256SUMS").write_text(text)
        with pytest.raises(ModelFolderError, match="SHA256SUMS"):
            fairy2i_runtime.load(folder, check="hashes")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ModelFolderError, match="exported without hashes"):
        fairy2i_runtime.load(folder, check="hashes")


@pytest.mark.parametrize("name", ["x" + "é" * 200, "é" * 200, "a\x1b[31m" + "b" * 200, "z" * 79 + "日本"])
def test_messages_of_the_library_are_whole_characters(tmp_path: Path, exported: onnx.ModelProto, name: str) -> None:
    """Its buffers are shorter than names may be: they were cut within a character, or left out."""
    folder = copy_of_stories(tmp_path / "model")
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    found = node(model, "Fairy2iMatMul")
    found.name = name
    attribute("Fairy2iMatMul", "layout_version", 99)(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFolderError, match="layout_version") as caught:
        fairy2i_runtime.load(folder, trust_graph=True)
    message = str(caught.value)
    assert message.isprintable()
    assert "\ufffd" not in message
    assert f"node '{name[0]}" in message
