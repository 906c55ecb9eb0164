"""Rotary embeddings within GroupQueryAttention: where they are, that they change no logits, and what loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

import fairy2i_runtime
from architecture_helpers import MIXED, exact_session, random_ids, save_tiny, stepwise_logits
from export_helpers import GrowingCache
from fairy2i_export import export
from fairy2i_export.check.facts import model_facts
from fairy2i_export.onnx_graph.decoder_graph import DecoderBuilder
from fairy2i_runtime.engine.graph.call import GraphError
from fairy2i_runtime.engine.graph.check import check_graph

HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
# model type, its settings, type of the cache -> do_rotary of every layer, nodes that rotate beside them
FORMS: dict[str, tuple[str, dict[str, Any], str, list[int], int]] = {
    "heads of 16": ("llama", {}, "float32", [1, 1], 0),
    "heads of 48": ("llama", {"head_dim": 48}, "float32", [1, 1], 0),
    "heads of 8": ("llama", {"head_dim": 8}, "float32", [0, 0], 4),
    "heads of 24": ("llama", {"head_dim": 24}, "float32", [0, 0], 4),
    "half of 32": ("phi3", {**HALF, "head_dim": 32, "hidden_size": 128}, "float32", [1, 1], 0),
    "half of 16": ("phi3", {**HALF, "hidden_size": 64}, "float32", [0, 0], 4),
    "layers without": ("smollm3", {"num_hidden_layers": 4}, "float32", [1, 1, 1, 0], 0),
    "two kinds and windows": ("gemma3_text", MIXED, "float32", [1, 1], 0),
    "float16": ("llama", {}, "float16", [0, 0], 4),
    "int8": ("llama", {}, "int8", [0, 0], 4),
}
ROTATING = [name for name, (_, _, cache, inside, _) in FORMS.items() if any(inside)]


def exported(folder: Path, name: str, **options: Any) -> Path:
    kind, settings, cache, _, _ = FORMS[name]
    if not (folder / "model").is_dir():
        save_tiny(folder / "model", kind, **settings)
    out = folder / f"out{len(list(folder.iterdir()))}"
    return export(folder / "model", out, embedding="float32", kv_cache=cache, **options).path


@pytest.mark.parametrize("name", FORMS)
def test_where_it_is(tmp_path: Path, name: str) -> None:
    _, _, _, inside, beside = FORMS[name]
    folder = exported(tmp_path, name)
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    rotates = [next(entry.i for entry in node.attribute if entry.name == "do_rotary") for node in attention]
    assert rotates == inside
    assert [bool(node.input[7]) for node in attention] == [bool(number) for number in inside]
    assert sum(node.op_type == "RotaryEmbedding" for node in nodes) == beside
    assert model_facts(folder / "model.onnx", None).tensor_bytes["rotary tables"] > 0
    assert fairy2i_runtime.load(folder).generate([5, 6, 7], max_new_tokens=4, ignore_eos=True).token_ids


def padded_logits(folder: Path, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Those of real tokens, float32 [tokens, vocab]."""
    return stepwise_logits(exact_session(folder), ids, mask, 12)[mask.astype(bool)]


@pytest.mark.parametrize("name", ROTATING)
def test_logits_are_those_of_nodes_that_rotate(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the bit where slots of the cache are positions; with padding in front the tables are read at other rows."""
    inside = exported(tmp_path, name)
    monkeypatch.setattr(DecoderBuilder, "_attention_rotates", lambda self, rope: False)
    beside = exported(tmp_path, name)
    ids = random_ids(3)
    columns = np.arange(ids.shape[1])
    for row in (0, 1):
        pieces = [GrowingCache(exact_session(folder), 1) for folder in (inside, beside)]
        for start, end in ((0, 5), (5, 9), (9, 10), (10, 20), (20, 21)):
            got, expected = (cache(ids[row : row + 1, start:end]) for cache in pieces)
            np.testing.assert_array_equal(got, expected)
    behind = ((columns >= 12) | (columns < np.array([[12], [7], [3]]))).astype(np.int64)
    np.testing.assert_array_equal(padded_logits(inside, ids, behind), padded_logits(beside, ids, behind))
    for lengths in ([0, 5, 9], [9, 0, 5]):
        before = (columns >= np.array(lengths)[:, None]).astype(np.int64)
        got, expected = padded_logits(inside, ids, before), padded_logits(beside, ids, before)
        assert 0 < np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_more_tokens_than_the_tables_have_is_an_error(tmp_path: Path) -> None:
    session = exact_session(exported(tmp_path, "heads of 16", context_length=24))
    cache = GrowingCache(session)
    cache(random_ids(1, 24))
    with pytest.raises(Exception, match="GroupQueryAttention"):
        cache(random_ids(1, 1))
    with pytest.raises(Exception, match="GroupQueryAttention"):
        GrowingCache(session)(random_ids(1, 25))


def attention_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")


def given(index: int, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        attention_of(model).input[index] = name

    return change


def tables(columns: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for name in ("rotary.cos", "rotary.sin"):
            tensor = next(found for found in model.graph.initializer if found.name == name)
            del tensor.external_data[:]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((64, columns), np.float32), name))

    return change


def interleaved(model: onnx.ModelProto) -> None:
    attention_of(model).attribute.append(helper.make_attribute("rotary_interleaved", 1))


def not_rotating(model: onnx.ModelProto) -> None:
    next(entry for entry in attention_of(model).attribute if entry.name == "do_rotary").i = 0


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "no cosines": (given(7, ""), "input 7 to be an initializer"),
    "sines of another shape": (given(8, "model.norm.weight"), "input 8 of type 1"),
    "positions": (given(9, "positions/ids/output"), "no inputs"),
    "columns for more than a head": (tables(16), "tables for heads of 16"),
    "columns that are no multiple of 8": (tables(4), "tables for heads of 16"),
    "pairs side by side": (interleaved, "no attributes rotary_interleaved"),
    "tables for nothing": (not_rotating, "no inputs"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("rotating"), "heads of 16")


@pytest.mark.parametrize("name", CHANGES)
def test_other_forms_are_refused(folder: Path, name: str) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    check_graph(model.SerializeToString(), folder, 64)
    with pytest.raises(GraphError, match="fewer than the context of 65"):
        check_graph(model.SerializeToString(), folder, 65)
    change, words = CHANGES[name]
    change(model)
    with pytest.raises(GraphError, match=words):
        check_graph(model.SerializeToString(), folder, 64)
