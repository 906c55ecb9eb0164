"""Layers with different numbers of stages: written, read, checked and shown as what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from architecture_helpers import exact_session, random_ids, stepwise_logits
from export_helpers import make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.check.facts import model_facts
from fairy2i_export.codes.layout import pack, unpack
from fairy2i_export.commands import tools
from fairy2i_export.compile import prepare
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.compile.earlier import EarlierExport
from fairy2i_export.compile.plan import Plan, make_plan
from fairy2i_export.errors import OptionError
from fairy2i_export.onnx_graph.stage_map import average_bits, in_words, kinds_of_layers, stage_map
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.checkpoint import open_checkpoint

QUANTIZER: dict[str, Any] = {"quantizer": "joint", "row_multiplier": "rms", "profile": "fp32", "trained": True}
BY_ENDING = {"v_proj": 4, "down_proj": 3, "gate_proj": 1}


def stages_of(name: str) -> int:
    """As the models here have it: more than one kind, and one layer that differs from its kind."""
    return 3 if name == "model.layers.1.self_attn.q_proj" else BY_ENDING.get(name.rpartition(".")[2], 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("stages") / "model")


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are mixed ones, whatever the options say."""

    def plan(*arguments: Any) -> Plan:
        made = make_plan(*arguments)
        return made.with_stages({linear.name: stages_of(linear.name) for linear in made.rewritten})

    monkeypatch.setattr(prepare, "make_plan", plan)


@pytest.fixture
def folder(source: Path, tmp_path: Path, mixed: None) -> Path:
    export(source, tmp_path / "mixed", **QUANTIZER, lm_head="float")
    return tmp_path / "mixed"


def metadata_of(folder: Path) -> dict[str, str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {entry.key.removeprefix("fairy2i."): entry.value for entry in model.metadata_props}


def test_every_layer_is_quantized_with_its_own(source: Path, folder: Path) -> None:
    checkpoint = open_checkpoint(source)
    nodes = read_nodes(folder / "model.onnx")
    assert {node.operands.stages for node in nodes} == {1, 2, 3, 4}
    for node in nodes:
        stages = stages_of(node.name)
        weight = checkpoint.read(f"{node.name}.weight")
        wanted = pack(quantize(weight, stages, "fp32", quantizer="joint", row_multiplier="rms"))
        assert node.operands.stages == stages
        assert np.array_equal(node.operands.packed, wanted.packed)
        assert np.array_equal(node.operands.scales, wanted.scales)


def test_metadata_and_model_card(folder: Path) -> None:
    nodes = read_nodes(folder / "model.onnx")
    sizes = {node.name: 4 * node.operands.n * node.operands.m for node in nodes}
    bits = sum(stages_of(name) * size for name, size in sizes.items()) / sum(sizes.values())
    found = metadata_of(folder)
    assert (found["stages"], float(found["bits"])) == ("1,2,3,4", pytest.approx(bits, abs=1e-4))
    assert json.loads(found["stages_map"]) == {
        "self_attn.q_proj": "23",
        "self_attn.k_proj": "22",
        "self_attn.v_proj": "44",
        "self_attn.o_proj": "22",
        "mlp.gate_proj": "11",
        "mlp.up_proj": "22",
        "mlp.down_proj": "33",
    }
    card = (folder / "README.md").read_text()
    assert "is a sum of 1 or 2 or 3 or 4 complex numbers" in card
    assert f"1 (2 layers), 2 (7 layers), 3 (3 layers), 4 (2 layers), {bits:.3f} on average" in card


def test_a_uniform_model_says_what_it_always_said(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", **QUANTIZER, stages=3)
    found = metadata_of(tmp_path / "out")
    assert found["stages"] == "3"
    assert not {"bits", "stages_map"} & found.keys()


@pytest.mark.parametrize(
    "backend", [{}, {"backend": "dense"}, {"backend": "matmulnbits", "accuracy_level": 0}], ids=["fairy2i", "dense", "nbits"]
)
def test_codes_from_a_mixed_folder(
    source: Path, folder: Path, tmp_path: Path, backend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte a fresh export, and the same logits whatever the backend; the plan alone would be another one."""
    export(source, tmp_path / "fresh", **QUANTIZER, lm_head="float", **backend)
    monkeypatch.setattr(prepare, "make_plan", make_plan)
    export(source, tmp_path / "again", codes_from=folder, trained=True, **backend)
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    ids = random_ids(1)
    mask = np.ones_like(ids)
    expected = stepwise_logits(exact_session(folder), ids, mask, 5)
    session = (
        exact_session(tmp_path / "again") if not backend else onnxruntime.InferenceSession(tmp_path / "again/model.onnx")
    )
    found = stepwise_logits(session, ids, mask, 5)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_codes_from_refuses_another_number(source: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"stages: the codes in .*mixed were made with 1,2,3,4, got 4; leave the option out"
    ):
        export(source, tmp_path / "out", codes_from=folder, stages=4)


def test_column_multipliers_of_some_layers_alone(source: Path, folder: Path, tmp_path: Path) -> None:
    """Which layers have them is told by the nodes; the others have none, and nothing is lost on the way."""
    earlier = EarlierExport(folder)
    factors = {
        name: np.linspace(0.5, 2, 2 * node.operands.m, dtype=np.float32)
        for name, node in earlier.nodes.items()
        if name.endswith(("o_proj", "down_proj"))
    }
    for name, factor in factors.items():
        node = earlier.nodes[name]
        earlier.nodes[name] = replace(node, operands=replace(node.operands, col_multiplier=factor))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "EarlierExport", lambda _: earlier)
        for backend in ("fairy2i", "matmulnbits", "dense"):
            export(source, tmp_path / backend, codes_from=folder, backend=backend, accuracy_level=None, trained=True)
    nodes = {node.name: node for node in read_nodes(tmp_path / "fairy2i" / "model.onnx")}
    assert {name for name, node in nodes.items() if node.operands.col_multiplier is not None} == factors.keys()
    name = "model.layers.1.mlp.down_proj"
    dense = onnx.load(tmp_path / "dense" / "model.onnx")
    stored = {x.name: onnx.numpy_helper.to_array(x) for x in dense.graph.initializer}
    expected = unpack(nodes[name].operands).dequantize("none")
    assert np.array_equal(stored[f"{name}.weight_transposed"].T, expected)
    assert not np.array_equal(expected, unpack(read_nodes(folder / "model.onnx")[-1].operands).dequantize("none"))
    nbits = onnx.load(tmp_path / "matmulnbits" / "model.onnx", load_external_data=False)
    assert {
        x.name.removesuffix(".col_multiplier") for x in nbits.graph.initializer if "col_multi" in x.name
    } == factors.keys()


def test_sizes_and_memory_are_those_of_the_layers(source: Path, tmp_path: Path, mixed: None) -> None:
    """A dry run tells what is written, and the tables of the deepest layer are counted."""
    for backend in ("fairy2i", "matmulnbits", "dense"):
        planned = dry_run(source, tmp_path / backend, **QUANTIZER, lm_head="float", backend=backend)
        report = export(source, tmp_path / backend, **QUANTIZER, lm_head="float", backend=backend)
        groups = sum(group.total_bytes for group in planned.groups)
        data = (tmp_path / backend / "model.onnx.data").stat().st_size
        assert abs(groups - data) < 64 * 4096  # alignment and constants
        stored = onnx.load(tmp_path / backend / "model.onnx").graph.initializer
        sizes = {x.name: onnx.numpy_helper.to_array(x).nbytes for x in stored}
        ours = {
            "fairy2i": (".packed", ".scales"),
            "matmulnbits": (".ternary", ".factors"),
            "dense": ("proj.weight_transposed",),
        }
        kinds = ours[backend] if backend == "dense" else (*ours[backend], ".row_multiplier")
        multipliers = 4 * sum(linear.out_features for linear in report.rewritten) if backend == "dense" else 0
        assert report.weight_bytes - multipliers == sum(size for name, size in sizes.items() if name.endswith(kinds))
    planned = dry_run(source, tmp_path / "x", **QUANTIZER, lm_head="float").device
    found = model_facts(tmp_path / "fairy2i" / "model.onnx", planned.context).device
    assert found is not None
    assert found.activations == planned.activations


def test_verify_against_the_source(source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tools.main(["verify", str(folder), "--against", str(source), "--tokens", "40", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["differing"] == []
    assert not [problem for problem in found["problems"] if "exact" in problem or "differ" in problem]


def test_inspect_shows_the_map(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert tools.main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.partition("Stages by kind of layer")[2].splitlines()]
    assert ["self_attn.q_proj", "1", "1", "2.500", "23"] in rows
    assert ["mlp.gate_proj", "2", "1.000", "11"] in rows
    assert any(row[:5] == ["all", "2", "7", "3", "2"] for row in rows)
    assert "stages_map" not in printed
    assert tools.main(["inspect", str(folder), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {layer["name"]: layer["stages"] for layer in layers} == {x["name"]: stages_of(x["name"]) for x in layers}


def test_report_shows_the_map(source: Path, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert (
        tools.main(["report", str(folder), "--against", str(source), "--tokens", "30", "--no-torch", "-o", str(page)]) == 0
    )
    written = page.read_text(encoding="utf-8")
    assert "sums of 1 or 2 or 3 or 4 complex numbers" in written
    assert "Who has how many stages" in written
    assert "<tr><td>self_attn.q_proj<td><td>1<td>1<td><td>2.500<td>23</tr>" in written


def test_maps() -> None:
    stages = {"model.layers.0.mlp.up_proj": 2, "model.layers.2.mlp.up_proj": 3, "lm_head": 4}
    sizes = {"model.layers.0.mlp.up_proj": 100, "model.layers.2.mlp.up_proj": 100, "lm_head": 200}
    assert stage_map(stages) == {"mlp.up_proj": "2-3", "lm_head": "4"}
    assert average_bits(stages, sizes) == 3.25
    assert in_words(stages, sizes) == "2 (1 layer), 3 (1 layer), 4 (1 layer), 3.250 on average"
    assert in_words(dict.fromkeys(stages, 2), sizes) == "2"
    first, last = kinds_of_layers(stages, sizes)
    assert (first.kind, first.counts, first.bits, first.by_layer) == ("mlp.up_proj", {2: 1, 3: 1}, 2.5, "2-3")
    assert (last.kind, last.counts, last.by_layer) == ("lm_head", {4: 1}, "4")
