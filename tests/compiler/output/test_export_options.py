"""Options of the export: how lm_head and embedding are stored, which layers are rewritten, where defaults come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export_helpers import (
    IDS,
    GrowingCache,
    dequantized_torch_model,
    edit_json,
    make_checkpoint,
    plain_session,
    relative_difference,
    torch_logits,
)
from fairy2i_export import export
from fairy2i_export.codes.choices import DEFAULTS
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.compile.options import resolve_options
from fairy2i_export.errors import CheckpointError, OptionError, WeightError
from fairy2i_export.onnx_graph.choices import EMBEDDINGS
from fairy2i_export.request.request import Request
from fairy2i_export.source.checkpoint import open_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def load(folder: Path) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray[Any, Any]]]:
    model = onnx.load(folder / "model.onnx")
    return list(model.graph.node), {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def blocks_of_32(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows, cols = matrix.shape
    padded = np.zeros((rows, -(-cols // 32) * 32))
    padded[:, :cols] = matrix
    return padded.reshape(rows, -1, 32)


def rounded(matrix: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Symmetric rounding in blocks of 32 columns, restated."""
    # in float32: values half way between two steps are common in bfloat16 weights
    blocks = blocks_of_32(matrix.astype(np.float32)).astype(np.float32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    step[step == 0] = 1
    return (np.rint(blocks / step) * step).reshape(matrix.shape[0], -1)[:, : matrix.shape[1]]


@pytest.mark.parametrize(("lm_head", "bits"), [("int8", 8), ("int4", 4), ("float", 32)])
@pytest.mark.parametrize("tied", [False, True])
def test_lm_head_kinds(tmp_path: Path, lm_head: str, bits: int, tied: bool) -> None:
    import torch

    source = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    report = export(source, tmp_path / "out", lm_head=lm_head, embedding="float32")
    assert [linear.name for linear in report.kept] == ["lm_head"]
    assert len(report.rewritten) == 14
    model = dequantized_torch_model(source, [linear.name for linear in report.rewritten])
    if bits < 32:
        head = model.lm_head.weight.detach().numpy()
        model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(rounded(head, bits).astype(np.float32)))
    expected = torch_logits(model, IDS)
    got = GrowingCache(plain_session(report.path))(IDS)
    # MatMulNBits rounds the activations to 8 bits (accuracy level 4)
    assert relative_difference(got, expected) < (1e-2 if bits < 32 else 2e-5)
    nodes, _ = load(report.path)
    assert next(n.op_type for n in nodes if n.name == "lm_head") == ("MatMul" if bits == 32 else "MatMulNBits")


def test_int4_lm_head_is_packed_as_matmulnbits_reads_it(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", lm_head="int4")
    nodes, tensors = load(tmp_path / "out")
    node = next(n for n in nodes if n.name == "lm_head")
    data, scales = (tensors[name] for name in node.input[1:3])
    assert data.shape == (210, 3, 16)
    assert scales.shape == (210 * 3,)
    values = np.stack([data & 15, data >> 4], axis=-1).reshape(210, 3, 32).astype(np.float64) - 8
    dense = (values * scales.reshape(210, 3, 1)).reshape(210, -1)[:, :72]
    weight = open_checkpoint(source).read("lm_head.weight").astype(np.float64)
    np.testing.assert_allclose(dense, rounded(weight, 4), atol=1e-6)


@pytest.mark.parametrize("embedding", [kind for kind in EMBEDDINGS if kind != "shared"])  # test_shared_embedding.py
def test_embedding_kinds(tmp_path: Path, embedding: str) -> None:
    import torch

    source = make_checkpoint(tmp_path / "model", dtype=np.float32)
    report = export(source, tmp_path / "out", embedding=embedding)
    model = dequantized_torch_model(source, [linear.name for linear in report.rewritten])
    rows = model.model.embed_tokens.weight.detach().numpy()
    stored = {"float32": rows, "float16": rows.astype(np.float16), "int8": rounded(rows, 8)}[embedding]
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(stored.astype(np.float32)))
    got = GrowingCache(plain_session(report.path))(IDS)
    assert relative_difference(got, torch_logits(model, IDS)) < 2e-5


def test_embedding_follows_the_checkpoint(tmp_path: Path) -> None:
    config = {"fairy2i": {}}
    for dtype, expected in (("BF16", "float16"), ("F16", "float16"), ("F32", "float32"), ("F64", "float32")):
        assert resolve_options(Request(), config, 96, dtype)[0].embedding == expected


def test_include_and_exclude(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "out", include=["model.layers.*"], exclude=["*.1.self_attn.[qk]_proj", "*down_proj"])
    reasons = {linear.name: linear.reason for linear in report.kept}
    assert reasons == {
        "model.layers.0.mlp.down_proj": "--exclude",
        "model.layers.1.mlp.down_proj": "--exclude",
        "model.layers.1.self_attn.q_proj": "--exclude",
        "model.layers.1.self_attn.k_proj": "--exclude",
        "lm_head": "not in --include",
    }
    assert set(report.errors) == {linear.name for linear in report.rewritten}
    expected = torch_logits(dequantized_torch_model(source, [linear.name for linear in report.rewritten]), IDS)
    got = GrowingCache(plain_session(report.path))(IDS)
    assert relative_difference(got, expected) < 5e-4  # the embedding is float16
    nodes, _ = load(report.path)
    assert next(n.op_type for n in nodes if n.name == "model.layers.0.mlp.down_proj") == "MatMul"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 0}, "stages: expected a number from 1 to 4, got 0"),
        ({"stages": 5}, "stages: expected a number from 1 to 4, got 5"),
        ({"profile": "fp8"}, "profile: expected one of bf16-reference, fp32, got 'fp8'"),
        ({"row_multiplier": "max"}, "row multiplier: expected one of none, rms"),
        ({"lm_head": "int2"}, "lm_head: expected one of fairy2i, int8, int4, float"),
        ({"embedding": "bf16"}, "embedding: expected one of float32, float16, int8, shared"),
        ({"context_length": 0}, "context length: expected 1 to 96"),
        ({"context_length": 97}, "context length: expected 1 to 96"),
        ({"include": ["*.q_prj"]}, "matches no linear layer; they are called like model.layers.0.self_attn.q_proj"),
        ({"exclude": ["q_proj"]}, "matches no linear layer"),
        ({"include": ["lm_head"], "lm_head": "int8"}, "no layer would become a Fairy2iMatMul node"),
        ({"exclude": ["*"]}, "no layer would become.*nothing was written"),
    ],
)
def test_impossible_options(source: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        export(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


TRAINED = {"stages": 3, "profile": "fp32", "row_multiplier": "rms", "lm_head": "int8", "latent": True}


def test_defaults_come_from_the_training_entry(source: Path, tmp_path: Path) -> None:
    edit_json(source / "config.json", fairy2i=TRAINED)
    report = export(source, tmp_path / "out")
    options = report.options
    assert (options.stages, options.profile, options.row_multiplier, options.lm_head) == (3, "fp32", "rms", "int8")
    assert report.warnings == ()


def test_given_options_win_and_contradictions_are_told(source: Path, tmp_path: Path) -> None:
    edit_json(source / "config.json", fairy2i=TRAINED)
    report = export(source, tmp_path / "out", stages=2, row_multiplier="none", lm_head="int8")
    assert (report.options.stages, report.options.row_multiplier, report.options.profile) == (2, "none", "fp32")
    assert sorted(report.warnings) == [
        "config.json says that the model was trained with row_multiplier rms; exporting with none as asked",
        "config.json says that the model was trained with stages 3; exporting with 2 as asked",
    ]


@pytest.mark.parametrize(
    ("entry", "options", "told"),
    [
        ({"stages": 2}, {"quantizer": "joint"}, ["quantizer greedy, the default; exporting with joint as asked"]),
        ({}, {"profile": "fp32", "stages": 3}, ["profile bf16-reference, the default", "stages 2, the default"]),
        (
            {"stages": 3},
            {"row_multiplier": "rms", "lm_head": "int4"},
            ["lm_head fairy2i, the d", "row_multiplier none, the d"],
        ),
        ({"quantizer": "joint"}, {"quantizer": "greedy"}, ["trained with quantizer joint; exporting with greedy as asked"]),
        ({"stages": 2}, {"quantizer": "greedy", "stages": 2, "profile": "bf16-reference"}, []),
        ({"quantizer": "joint", "profile": "fp32"}, {}, []),
    ],
)
def test_what_an_entry_leaves_out_is_the_default_of_training(
    source: Path, entry: dict[str, Any], options: dict[str, Any], told: list[str]
) -> None:
    edit_json(source / "config.json", fairy2i=entry)
    found = dry_run(source, source.parent / "out", **options)
    assert len(found.warnings) == len(told)
    for warning, words in zip(sorted(found.warnings), told, strict=True):
        assert words in warning
    for name, value in {**DEFAULTS, **entry, **options}.items():
        assert getattr(found.options, name) == value


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"latent": False}, "already dequantized"),
        ({"stages": 9}, "fairy2i: stages: expected a number from 1 to 4, got 9"),
        ({"profile": "fp8"}, "fairy2i: profile: expected one of"),
        ("yes", "expected an object"),
    ],
)
def test_bad_training_entries(source: Path, tmp_path: Path, entry: Any, words: str) -> None:
    edit_json(source / "config.json", fairy2i=entry)
    with pytest.raises(CheckpointError, match=words):
        export(source, tmp_path / "out")


def test_plain_pretrained_weights_are_warned_about(source: Path, tmp_path: Path) -> None:
    (warning,) = export(source, tmp_path / "a", stages=2).warnings
    assert "config.json does not say that this model was trained with Fairy2i" in warning
    assert "--trained" in warning
    assert export(source, tmp_path / "b", trained=True).warnings == ()


def test_quantization_errors_are_measured(tmp_path: Path) -> None:
    from fairy2i_export import quantize

    source = make_checkpoint(tmp_path / "model")
    for row_multiplier in ("none", "rms"):
        report = export(source, tmp_path / row_multiplier, row_multiplier=row_multiplier)
        weight = open_checkpoint(source).read("model.layers.1.mlp.down_proj.weight")
        dense = quantize(weight, row_multiplier=row_multiplier).dequantize("none").astype(np.float64)
        a = weight.astype(np.float64)
        expected = np.linalg.norm(a - dense) / np.linalg.norm(a)
        assert report.errors["model.layers.1.mlp.down_proj"] == pytest.approx(expected, rel=1e-6)
        assert report.worst_layer[1] == max(report.errors.values())


def test_unused_and_missing_tensors(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.q_proj.quant_scale": np.ones(3, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
    }
    report = export(make_checkpoint(tmp_path / "extra", replace=extra), tmp_path / "out", trained=True)
    assert report.warnings == (
        "1 tensors of the checkpoint are not used, the first is model.layers.0.self_attn.q_proj.quant_scale",
    )
    source = make_checkpoint(tmp_path / "short", tie_word_embeddings=True)
    edit_json(source / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing, and config\.json does not tie it"):
        export(source, tmp_path / "out2")
    edit_json(source / "config.json", tie_word_embeddings=True, intermediate_size=152)
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight: expected shape \[152, 72\].*found \[150, 72\]"):
        export(source, tmp_path / "out2")


@pytest.mark.parametrize(
    ("tensor", "shape", "options"),
    [
        ("model.layers.1.mlp.up_proj.weight", (150, 72), {}),
        ("model.layers.1.mlp.up_proj.weight", (150, 72), {"exclude": ["*up_proj"]}),
        ("model.embed_tokens.weight", (210, 72), {}),
        ("model.embed_tokens.weight", (210, 72), {"embedding": "int8"}),
        ("lm_head.weight", (210, 72), {"lm_head": "int4"}),
        ("model.norm.weight", (72,), {}),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_weights_that_are_not_finite(
    tmp_path: Path, tensor: str, shape: tuple[int, ...], options: dict[str, Any], bad: float
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(ml_dtypes.bfloat16)
    array[-1 if len(shape) == 1 else (-1, 3)] = bad
    source = make_checkpoint(tmp_path / "model", replace={tensor: array})
    with pytest.raises(WeightError, match=f"{tensor}.*not finite"):
        export(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_embedding_beyond_float16(tmp_path: Path) -> None:
    array = np.full((210, 72), 1e6, ml_dtypes.bfloat16)
    source = make_checkpoint(tmp_path / "model", replace={"model.embed_tokens.weight": array})
    with pytest.raises(WeightError, match="do not fit float16"):
        export(source, tmp_path / "out")
    export(source, tmp_path / "out", embedding="float32")


def test_dequantized_weights_are_refused(tmp_path: Path) -> None:
    from fairy2i_export import quantize

    latent = np.random.default_rng(0).standard_normal((150, 72))
    dense = quantize(latent).dequantize().astype(ml_dtypes.bfloat16)
    source = make_checkpoint(tmp_path / "model", replace={"model.layers.0.mlp.up_proj.weight": dense})
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.up_proj.*already a dequantized Fairy2i weight"):
        export(source, tmp_path / "out")
