"""Models whose multipliers and scales were learned in training: exported by every back end, verified, refused when damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

import fairy2i_runtime
from export_helpers import GrowingCache, edit_json, make_checkpoint, plain_session, relative_difference, torch_logits
from fairy2i_export import export, quantize
from fairy2i_export.check.source_weights import SourceWeights
from fairy2i_export.commands.tools import main as tools
from fairy2i_export.compile.identity import identity
from fairy2i_export.compile.prepare import prepare
from fairy2i_export.errors import CheckpointError, WeightError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.request.request import Request
from fairy2i_export.source.checkpoint import open_checkpoint

ENTRY: dict[str, Any] = {
    "method": "fairy2i",
    "stages": 3,
    "profile": "fp32",
    "quantizer": "joint",
    "row_multiplier": "learned",
    "col_multiplier": "learned",
    "scales": "learned",
    "exclude": ["model.layers.0.mlp.up_proj"],
    "latent": True,
}
WAYS: list[tuple[dict[str, Any], float]] = [
    ({"backend": "fairy2i"}, 2e-5),
    ({"backend": "matmulnbits", "accuracy_level": 0}, 2e-5),
    ({"backend": "dense"}, 2e-5),
]


def operands_of(shape: tuple[int, ...], seed: int, stages: int) -> dict[str, np.ndarray]:
    """A latent weight whose rows and columns differ, multipliers that even it out, and scales near those that fit best."""
    rng = np.random.default_rng(seed)
    inner = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    rows, cols = rng.uniform(0.5, 2, shape[0]).astype(np.float32), rng.uniform(0.8, 1.25, shape[1]).astype(np.float32)
    scales = quantize(inner, stages, "fp32", quantizer="joint").scales * rng.uniform(0.95, 1.05, (stages, 2, 2))
    return {
        "weight": inner * rows[:, None] * cols,
        "row_multiplier": rows,
        "col_multiplier": cols,
        "scales": scales.astype(np.float32),
    }


def make_learned(tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """A checkpoint with learned tensors for every linear layer, and these by module."""
    tmp_path.mkdir(exist_ok=True)
    plain = make_checkpoint(tmp_path / "plain", dtype=np.float32)
    shapes = {
        name.removesuffix(".weight"): file.tensors[name].shape
        for name, file in open_checkpoint(plain).owners.items()
        if name.endswith("_proj.weight") or name == "lm_head.weight"
    }
    learned = {module: operands_of(shapes[module], i, ENTRY["stages"]) for i, module in enumerate(sorted(shapes))}
    stored = {f"{module}.{key}": array for module, operands in learned.items() for key, array in operands.items()}
    entry = {key: value for key, value in {**ENTRY, **changes.pop("entry", {})}.items() if value is not None}
    stored.update(changes.pop("replace", {}))
    for name in changes.pop("drop", ()):
        del stored[name]
    return make_checkpoint(tmp_path / "source", dtype=np.float32, replace=stored, fairy2i=entry), learned


def multipliers_of(operands: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: array for key, array in operands.items() if key != "weight"}


def torch_twin(source: Path, rewritten: list[str], learned: dict[str, dict[str, np.ndarray]]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name in rewritten:
        module = model.get_submodule(name)
        q = quantize(learned[name]["weight"], 3, "fp32", quantizer="joint", **multipliers_of(learned[name]))
        module.weight = torch.nn.Parameter(torch.from_numpy(q.dequantize("none")))
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    return make_learned(tmp_path_factory.mktemp("learned"))


@pytest.mark.parametrize(("way", "tolerance"), WAYS)
def test_every_backend_computes_the_dense_product(
    model: tuple[Path, dict[str, dict[str, np.ndarray]]], way: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    source, learned = model
    report = export(source, tmp_path / "out", **way)
    assert report.warnings == ()
    names = [linear.name for linear in report.rewritten]
    assert "model.layers.0.mlp.up_proj" not in names
    assert len(names) == len(learned) - 1
    expected = torch_logits(torch_twin(source, names, learned), ids := np.random.default_rng(0).integers(3, 200, (2, 12)))
    if way["backend"] == "fairy2i":
        assert relative_difference(GrowingCache(plain_session(report.path), 2)(ids), expected) < tolerance
    options = ort.SessionOptions()
    options.add_session_config_entry("fairy2i.kernel", "exact")
    fairy2i_runtime.register(options)
    session = ort.InferenceSession(str(report.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert relative_difference(GrowingCache(session, 2)(ids), expected) < tolerance
    metadata = session.get_modelmeta().custom_metadata_map
    found = [metadata[f"fairy2i.{key}"] for key in ("quantizer", "row_multiplier", "col_multiplier", "scales")]
    assert found == ["joint", "learned", "learned", "learned"]
    shapes = sum(sum(array.nbytes for key, array in learned[name].items() if "multiplier" in key) for name in names)
    assert report.weight_bytes > shapes


def test_verify_and_inspect_honour_them(model: tuple[Path, dict[str, dict[str, np.ndarray]]], tmp_path: Path) -> None:
    source, learned = model
    export(source, tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    nodes, metadata = read_nodes(file), fairy2i_runtime.load(tmp_path / "out").metadata
    assert list(SourceWeights(open_checkpoint(source), file, metadata).differing(nodes)) == []
    assert tools(["inspect", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| stages, profile, quantizer | 3, fp32, joint |" in card
    assert "| multipliers per row, per column; scales | learned, learned; learned |" in card
    head = learned["lm_head"]
    for key, reason in (
        ("scales", "the scales differ"),
        ("row_multiplier", "the row multipliers differ"),
        ("col_multiplier", "the column multipliers differ"),
    ):
        # codes change with the latent weight over the multipliers: keep that quotient, so that only the operand differs
        factor = np.float32(2)
        changed = {f"lm_head.{key}": head[key] * (np.float32(1 + 2**-20) if key == "scales" else factor)}
        if key != "scales":
            changed["lm_head.weight"] = head["weight"] * factor
        other, _ = make_learned(tmp_path / key, replace=changed)
        found = list(SourceWeights(open_checkpoint(other), file, metadata).differing(nodes))
        assert [name for name, _ in found] == ["lm_head"]
        assert found[0][1] == reason or (key == "scales" and "codes differ" in found[0][1])


DAMAGED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"drop": ["lm_head.scales"]}, CheckpointError, "tensor lm_head.scales is missing"),
    (
        {"replace": {"lm_head.row_multiplier": np.ones(3, np.float32)}},
        CheckpointError,
        r"tensor lm_head.row_multiplier: expected shape \[.*\] by config.json, found \[3\]",
    ),
    ({"entry": {"stages": 2}}, CheckpointError, r"scales: expected shape \[2, 2, 2\] by config.json, found \[3, 2, 2\]"),
    (
        {"replace": {"lm_head.scales": np.full((3, 2, 2), np.nan, np.float32)}},
        WeightError,
        "lm_head.scales: expected finite values, found nan",
    ),
    ({"entry": {"method": "ternary"}}, CheckpointError, '"method" is ternary: this model was trained as a baseline'),
    ({"entry": {"method": "magic"}}, CheckpointError, "fairy2i: method: expected one of fairy2i, binary, ternary"),
    ({"entry": {"quantizer": "best"}}, CheckpointError, "fairy2i: quantizer: expected one of greedy, joint"),
    ({"entry": {"scales": "some"}}, CheckpointError, "fairy2i: scales: expected one of computed, learned"),
    ({"entry": {"exclude": "lm_head"}}, CheckpointError, "exclude: expected a list of globs"),
]


@pytest.mark.parametrize(("changes", "error", "words"), DAMAGED)
def test_what_is_wrong_is_named(changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    source, _ = make_learned(tmp_path, **changes)
    with pytest.raises(error, match=words):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zero_multipliers_and_unused_tensors(tmp_path: Path) -> None:
    zeros = {"lm_head.row_multiplier": np.zeros(make_rows(tmp_path), np.float32)}
    source, _ = make_learned(tmp_path, replace=zeros)
    with pytest.raises(WeightError, match=r"lm_head.row_multiplier: expected finite values other than zero, found 0"):
        export(source, tmp_path / "out")
    edit_json(source / "config.json", fairy2i={**ENTRY, "row_multiplier": "none"})
    (warning,) = export(source, tmp_path / "out").warnings
    assert "tensors of the checkpoint are not used" in warning


def make_rows(tmp_path: Path) -> int:
    """Rows of lm_head in the checkpoints of this file."""
    source = make_checkpoint(tmp_path / "sizes", dtype=np.float32)
    return int(open_checkpoint(source).info("lm_head.weight").shape[0])


def test_an_interrupted_export_notices_other_learned_tensors(tmp_path: Path) -> None:
    source, learned = make_learned(tmp_path)
    file = source / "model.safetensors"
    prepared = prepare(source, tmp_path / "out", Request())
    before = identity(prepared.checkpoint, prepared.options, prepared.places)
    status, contents = file.stat(), file.read_bytes()
    old = learned["lm_head"]["scales"].tobytes()
    file.write_bytes(contents.replace(old, (learned["lm_head"]["scales"] * np.float32(1.5)).tobytes()))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    prepared = prepare(source, tmp_path / "out", Request())
    after = identity(prepared.checkpoint, prepared.options, prepared.places)
    assert before["source"] != after["source"]
    assert before["options"] == after["options"]
    greedy = prepare(source, tmp_path / "out", Request(quantizer="greedy"))
    assert identity(greedy.checkpoint, greedy.options, greedy.places)["options"] != after["options"]


def test_joint_is_an_option_for_plain_weights(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", dtype=ml_dtypes.bfloat16)
    errors = {
        name: export(source, tmp_path / name, stages=4, quantizer=name, jobs=2).mean_error for name in ("greedy", "joint")
    }
    assert errors["joint"] < 0.6 * errors["greedy"]
    edit_json(source / "config.json", fairy2i={"stages": 4, "quantizer": "joint"})
    report = export(source, tmp_path / "trained", jobs=1)
    assert report.options.quantizer == "joint"
    assert (tmp_path / "trained" / "model.onnx.data").read_bytes() == (tmp_path / "joint" / "model.onnx.data").read_bytes()
    (warning,) = export(source, tmp_path / "other", quantizer="greedy").warnings
    assert "trained with quantizer joint; exporting with greedy" in warning
