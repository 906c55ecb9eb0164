"""The estimate of the memory a model takes: --dry-run, info and inspect agree, and each says what it counts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.check.facts import model_facts
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main as tools
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.output import sizes
from fairy2i_runtime.measure.info import model_info
from fairy2i_runtime.measure.memory import (
    PROGRAM_BYTES,
    Copies,
    ModelShape,
    count_copies,
    estimate_memory,
    human_bytes,
    memory_rows,
    model_shape,
)
from runtime_models import copy_of_stories

CONTEXT = 80
SHAPE = ModelShape(
    layers=2,
    kv_heads=3,
    head_size=8,
    cache_bytes=4,
    heads=9,
    hidden_size=72,
    intermediate_size=150,
    vocab=210,
    stages=2,
    selects=False,
)
LINEARS = 2 * (2 * 72 * 72 + 2 * 72 * 24 + 3 * 72 * 150) + 210 * 72  # parameters of make_checkpoint's model
HEAD_INT8 = 210 * 3 * (32 + 4)  # blocks of 32 columns and their scales
ROUNDED = {"lm_head": "int8", "embedding": "int8", "kv_cache": "int8"}
WAYS = [
    pytest.param({}, 0, id="fairy2i"),
    pytest.param({"stages": 3, "row_multiplier": "rms"}, 0, id="W3"),
    pytest.param(ROUNDED, HEAD_INT8, id="int8 head, embedding, cache"),
    pytest.param({"lm_head": "float", "exclude": ("*.up_proj",)}, 4 * (210 * 72 + 2 * 72 * 150), id="layers left alone"),
    pytest.param({"backend": "matmulnbits"}, None, id="matmulnbits"),
    pytest.param({"backend": "matmulnbits", "stages": 1, "lm_head": "int4"}, None, id="matmulnbits, int4 head"),
    pytest.param({"backend": "dense", "kv_cache": "float16"}, 4 * LINEARS, id="dense"),
    pytest.param({"backend": "dense", "dense_type": "float16"}, 4 * LINEARS, id="dense, float16"),
]


@pytest.mark.parametrize(("options", "copied"), WAYS)
def test_three_commands_agree(options: dict[str, Any], copied: int | None, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    device = dry_run(source, tmp_path / "out", **options, context_length=CONTEXT).device
    folder = export(source, tmp_path / "out", **options, context_length=CONTEXT).path
    told = model_info(folder)["memory"]
    facts = model_facts(folder / "model.onnx", CONTEXT)
    graph, data = ((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert told == facts.memory == facts.as_dict()["memory"]
    assert device.graph == 0
    assert {**device.as_dict(), "weights_mapped": device.weights + graph, "total": device.total + graph} == told
    assert told["total"] == sum(told.values()) - told["total"]
    assert copied in (told["weights_copied"], None)
    if options.get("backend", "fairy2i") == "fairy2i":
        assert told["weights_mapped"] == graph + data
    else:
        assert 0 < told["weights_mapped"] < graph + data - (told["weights_copied"] // 2) * (copied is None)


def test_the_parts_of_the_estimate() -> None:
    short, full = (estimate_memory(SHAPE, context, 1000, Copies(0, 0), 10) for context in (100, 400))
    assert full.cache == 4 * short.cache == 2 * 2 * 3 * 8 * 4 * 400
    assert (full.weights, full.graph, full.copied, full.program) == (1000, 10, 0, PROGRAM_BYTES)
    assert full.logits == 128 * 210 * 4 * 5 // 4  # no more than 128 tokens of a prompt are run at a time
    selecting = estimate_memory(ModelShape(**{**vars(SHAPE), "selects": True}), 400, 1000, Copies(0, 0), 10)
    assert selecting == replace(full, logits=210 * 4 * 5 // 4)
    values = 128 * (4 * 72 + 3 * 150) + 9 * 128 * 400
    assert full.activations == (4 * values + 32 * 150 * 2 * 16) * 5 // 4
    assert full.working == full.activations + full.logits
    assert full.total == 1010 + full.cache + full.working + PROGRAM_BYTES
    assert full.total == sum(vars(full).values()) - full.context
    # what is copied counts instead of what is stored where our operator is not used, else beside it
    for stages, mapped in ((2, 1000), (0, 700)):
        found = estimate_memory(ModelShape(**{**vars(SHAPE), "stages": stages}), 400, 1000, Copies(600, 300))
        assert (found.weights, found.copied) == (mapped, 600)
    assert estimate_memory(ModelShape(**{**vars(SHAPE), "stages": 0}), 400, 0, None).activations == 4 * values * 5 // 4


@pytest.mark.parametrize(
    ("metadata", "stages"),
    [
        ({}, 0),
        ({"fairy2i.stages": "2"}, 2),
        ({"fairy2i.stages": "1,3,2", "fairy2i.backend": "fairy2i"}, 3),
        ({"fairy2i.stages": "2", "fairy2i.backend": "dense"}, 0),
        ({"fairy2i.stages": "many"}, 0),
    ],
)
def test_shapes_from_files_that_say_little(tmp_path: Path, metadata: dict[str, str], stages: int) -> None:
    graph = {"layers": 2, "kv_heads": 3, "head_size": 8, "cache_bytes": 1, "vocab": 210, "selects": True}
    found = model_shape(tmp_path, metadata, **graph)
    assert found == ModelShape(**graph, heads=3, hidden_size=24, intermediate_size=96, stages=stages)
    (tmp_path / "config.json").write_text('{"intermediate_size": 7}')
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"hidden_size": 70, "num_attention_heads": 5}}}')
    found = model_shape(tmp_path, metadata, **graph)
    assert (found.heads, found.hidden_size, found.intermediate_size, found.widest) == (5, 70, 7, 70)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "genai_config.json").write_text('{"model": []}')
    assert model_shape(tmp_path, metadata, **graph).intermediate_size == 96


def test_weights_of_other_exporters_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "half": rng.normal(size=(8, 4)).astype(np.float16),
        "float": rng.normal(size=(4, 6)).astype(np.float32),
        "codes": np.zeros((3, 1, 16), np.uint8),
        "steps": np.ones(3, np.float32),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["half"], ["wide"], to=1),
        make("MatMul", ["x", "wide"], ["a"]),
        make("MatMul", ["a", "float"], ["b"]),
        make("MatMul", ["b", "y"], ["c"]),  # no weight
        make("MatMulNBits", ["c", "codes", "steps"], ["d"], domain="com.microsoft", K=32, N=3, bits=4, block_size=32),
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, None), value("y", 1, None)], [value("d", 1, None)], initializers
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    assert count_copies(tmp_path / "model.onnx") == Copies(4 * 32 + 4 * 24 + 48 + 12, 2 * 32 + 4 * 24 + 48 + 12)


def test_without_onnx_it_is_said_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of_stories(tmp_path / "model")
    whole = model_info(folder)["memory"]
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert count_copies(folder / "model.onnx") is None
    memory = model_info(folder)["memory"]
    assert "weights_copied" not in memory
    assert memory == {key: value for key, value in whole.items() if key != "weights_copied"}
    assert ("weights that onnxruntime copies", "not counted: that needs the package onnx") in memory_rows(memory, 512)
    assert tools(["info", str(folder)]) == 0
    assert "not counted: that needs the package onnx" in capsys.readouterr().out


def test_texts_name_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    source = make_checkpoint(tmp_path / "source")
    arguments = ["--lm-head", "int8", "--context-length", str(CONTEXT)]
    assert export_main([str(source), "-o", str(tmp_path / "out"), *arguments, "--dry-run"]) == 0
    foretold = capsys.readouterr().out
    export(source, tmp_path / "out", lm_head="int8", context_length=CONTEXT)
    assert tools(["info", str(tmp_path / "out"), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["model"]["memory"]
    texts = [foretold]
    for command in ("info", "inspect"):
        assert tools([command, str(tmp_path / "out")]) == 0
        texts.append(capsys.readouterr().out)
    rows = memory_rows(memory, CONTEXT)
    assert [what for what, _ in rows] == [
        "weights, mapped from the file",
        "weights that onnxruntime copies",
        "keys and values of 80 tokens",
        "activations of a long prompt",
        "logits of a long prompt",
        "program",
        "all",
    ]
    for text in texts:
        assert all(what in text for what, _ in rows)
        assert "MiB" not in text
    for text in texts[1:]:
        assert all(size in text for _, size in rows)


def test_one_unit() -> None:
    assert sizes.human_bytes is human_bytes
    found = [human_bytes(count) for count in (0, 999, 1000, 1234567, 2.5e9, 4e12)]
    assert found == ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "2.5 GB", "4000.0 GB"]
