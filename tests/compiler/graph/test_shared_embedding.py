"""--embedding shared: one int8 matrix for embedding and a tied lm_head, rotated or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from export_helpers import IDS, GrowingCache, make_checkpoint, plain_session, relative_difference, write_tokenizer
from fairy2i_export import export
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import OptionError
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.rotation.choice import choose_rotation
from fairy2i_export.source.rotation.weights import RotatedWeights
from fairy2i_runtime import load
from fairy2i_runtime.engine.graph.check import check_graph
from fairy2i_runtime.errors import ModelFolderError

# tied; hidden is a multiple of 32, as it has to be, and none of 64
SIZES: dict[str, Any] = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
OPTIONS: dict[str, Any] = {"lm_head": "int8", "embedding": "shared", "stages": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("tied") / "model", **SIZES)
    write_tokenizer(folder, 210)
    return folder


def model_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx")


def big(folder: Path, least: int = 96 * 96) -> dict[str, tuple[int, ...]]:
    """Shapes of what has as many values as a quarter of the embedding, and is not a layer's."""
    found = {tensor.name: tuple(tensor.dims) for tensor in model_of(folder).graph.initializer}
    return {name: shape for name, shape in found.items() if np.prod(shape) >= least and not name.endswith(".packed")}


def values_of(folder: Path) -> dict[str, bytes]:
    """Initializers as bytes."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in model_of(folder).graph.initializer}


def test_it_is_there_once_and_computes_what_two_do(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "one", **OPTIONS)
    export(source, tmp_path / "two", **{**OPTIONS, "embedding": "int8"})
    assert big(tmp_path / "one") == {"model.embed_tokens.int8": (210, 3, 32)}
    assert len(big(tmp_path / "two")) == 2
    one, two = (GrowingCache(plain_session(tmp_path / name))(IDS) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)  # both round in the same blocks
    assert load(tmp_path / "one").logits([1, 5, 9]).shape == (3, 210)
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("one", "two")]
    assert sizes[1] - sizes[0] >= 210 * 96
    assert dry_run(source, tmp_path / "plan", **OPTIONS).estimate.output_bytes == pytest.approx(report.output_bytes, rel=0.1)


def test_the_factor_of_a_rotated_head(source: Path) -> None:
    """E diag(g) R = (E R) (R^T diag(g) R), by what the rest of the exporter makes of both matrices."""
    checkpoint = open_checkpoint(source)
    decoder = describe(checkpoint.config)
    rotated = RotatedWeights(checkpoint, decoder, choose_rotation(decoder))
    embedding = rotated.read("model.embed_tokens")
    head = rotated.read("lm_head", tensor="model.embed_tokens.weight")
    turn = rotated.turn("lm_head")
    assert relative_difference(embedding, head) > 0.1
    assert relative_difference(embedding.astype(np.float64) @ turn, head) < 1e-6
    np.testing.assert_allclose(turn, turn.T, atol=1e-6)


def test_conversions_share_it_unless_told_otherwise(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{3 + i * i % 190}" for i in range(400)))
    how: dict[str, Any] = {
        "calibrate": [text],
        "calibrate_tokens": 300,
        "stages": 4,
        "jobs": 1,
        "calibrate_without": "tuning",
    }
    assert export(source, tmp_path / "shared", **how).options.embedding == "shared"
    apart = export(source, tmp_path / "apart", **how, embedding="float32")
    assert apart.options.embedding == "float32"
    assert set(big(tmp_path / "shared")) == {"model.embed_tokens.int8", "lm_head.turn"}
    export(source, tmp_path / "two", **how, embedding="int8")
    values = [values_of(tmp_path / name) for name in ("shared", "apart", "two")]
    layers = [{name: value for name, value in found.items() if ".layers." in name} for found in values]
    assert len(layers[0]) >= 2 * 7 * 2  # packed codes and scales of seven matrices in two layers
    assert layers[0] == layers[1] == layers[2]  # sharing is decided after calibration
    shared, separate = (load(tmp_path / name, kernel="exact").logits([1, 5, 9, 77, 3]) for name in ("shared", "two"))
    assert relative_difference(shared, separate) < 0.02  # the head in 8 bits, with the rounding of the embedding or its own
    assert export(source, tmp_path / "four", **how, lm_head="int4").options.embedding == "float16"

    # what is stored once there is stored once beside its codes, too, unless that cannot be
    again = export(source, tmp_path / "again", codes_from=tmp_path / "shared", kv_cache="float16")
    assert again.options.embedding == "shared"
    with pytest.raises(OptionError, match=r"embedding: shared is one int8 matrix.*got lm_head int4"):
        export(source, tmp_path / "none", codes_from=tmp_path / "shared", lm_head="int4")
    export(source, tmp_path / "head", codes_from=tmp_path / "shared", lm_head="int4", embedding="int8")


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({}, {"lm_head": "int4"}, "got lm_head int4; add --lm-head int8"),
        ({}, {"lm_head": "fairy2i"}, "got lm_head fairy2i"),
        ({"tie_word_embeddings": False}, {}, "for models that tie lm_head to it"),
        ({"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}, {}, "a multiple of 32 columns, found 72"),
    ],
)
def test_where_it_cannot_be(tmp_path: Path, sizes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    source = make_checkpoint(tmp_path / "model", **{**SIZES, **sizes})
    with pytest.raises(OptionError, match=words):
        export(source, tmp_path / "out", **{**OPTIONS, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_head_of_its_own_counts(tmp_path: Path) -> None:
    """As in transformers: a lm_head.weight that exists is used although config.json ties it."""
    head = np.ones((210, 96), np.float32)
    source = make_checkpoint(tmp_path / "model", **SIZES, replace={"lm_head.weight": head})
    with pytest.raises(OptionError, match="has a matrix of its own"):
        export(source, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("const/210_3_1", [210, 1, 3]),
        ("const/210_3_1", [210, 3, 2]),
        ("const/210_3_1", [630, 1, 1]),
        ("const/210_3_1", [-1, 3, 1]),
    ],
)
def test_damaged_shapes_are_refused(source: Path, tmp_path: Path, name: str, values: list[int]) -> None:
    folder = tmp_path / "out"
    export(source, folder, **OPTIONS)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(found for found in model.graph.initializer if found.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFolderError, match="expected"):
        load(folder)


def test_it_is_said(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", **OPTIONS)
    found = {entry.key: entry.value for entry in model_of(tmp_path / "out").metadata_props}
    assert found["fairy2i.embedding"] == "shared"
    assert "| embedding, lm_head | shared, int8 |" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["vocab_size"] == 210
    check_graph((tmp_path / "out" / "model.onnx").read_bytes(), tmp_path / "out", 96)
