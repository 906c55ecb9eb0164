"""Exported models, run by ONNX Runtime without the C library, against transformers with dequantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

import fairy2i_runtime
from export_helpers import (
    GrowingCache,
    SharedCache,
    dequantized_torch_model,
    make_checkpoint,
    plain_session,
    relative_difference,
    torch_logits,
    write_tokenizer,
)
from fairy2i_export import ExportReport, export

TOLERANCE = 2e-5  # of the largest logit
PROMPT, STEPS = 9, 22
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def ids_of(batch: int, length: int, vocabulary: int = 200) -> Any:
    return np.random.default_rng(7).integers(3, vocabulary, (batch, length))


def assert_equal_to_transformers(source: Path, report: ExportReport, batch: int = 1, **quantizer: Any) -> None:
    """Prefill, then token by token, with a growing and with an in-place cache."""
    model = dequantized_torch_model(source, [linear.name for linear in report.rewritten], **quantizer)
    ids = ids_of(batch, PROMPT + STEPS)
    expected = torch_logits(model, ids)
    session = plain_session(report.path)
    assert relative_difference(GrowingCache(session, batch)(ids), expected) < TOLERANCE
    for cache in (GrowingCache(session, batch), SharedCache(session, 40, batch)):
        logits = [cache(ids[:, :PROMPT]), *(cache(ids[:, i : i + 1]) for i in range(PROMPT, PROMPT + STEPS))]
        assert relative_difference(np.concatenate(logits, axis=1), expected) < TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="grouped queries"),
        pytest.param({"num_key_value_heads": 9}, id="every query its key"),
        pytest.param({"num_key_value_heads": 1}, id="one key"),
        pytest.param({"head_dim": 16}, id="head_dim apart from hidden_size"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param({"rope_theta": 500000.0, "rope_scaling": LLAMA3}, id="llama3 rope"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 4.0}}, id="linear rope"),
        pytest.param({"num_hidden_layers": 1, "rms_norm_eps": 1e-2}, id="one layer, large epsilon"),
    ],
)
def test_equals_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    source = make_checkpoint(tmp_path / "model", **config)
    report = export(source, tmp_path / "out", embedding="float32")
    assert len(report.rewritten) == 7 * config.get("num_hidden_layers", 2) + 1
    assert_equal_to_transformers(source, report)


@pytest.mark.parametrize(
    ("options", "quantizer"),
    [
        ({"stages": 1}, {"stages": 1}),
        ({"stages": 3}, {"stages": 3}),
        ({"stages": 4, "profile": "fp32"}, {"stages": 4, "profile": "fp32"}),
        ({"row_multiplier": "rms"}, {"row_multiplier": "rms"}),
    ],
)
def test_options_of_the_quantizer(tmp_path: Path, options: dict[str, Any], quantizer: dict[str, Any]) -> None:
    source = make_checkpoint(tmp_path / "model", attention_bias=True)
    report = export(source, tmp_path / "out", embedding="float32", **options)
    assert_equal_to_transformers(source, report, **quantizer)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_weight_dtypes_and_batch(tmp_path: Path, dtype: Any) -> None:
    source = make_checkpoint(tmp_path / "model", dtype=dtype)
    report = export(source, tmp_path / "out")
    assert report.options.embedding == ("float32" if dtype == np.float32 else "float16")
    assert_equal_to_transformers(source, report, batch=3)


def test_odd_dimensions_stay_dense(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", intermediate_size=151, vocab_size=211, mlp_bias=True)
    report = export(source, tmp_path / "out", embedding="float32")
    assert {linear.name.rpartition(".")[2] for linear in report.kept} == {"gate_proj", "up_proj", "down_proj", "lm_head"}
    assert {linear.reason for linear in report.kept} == {"odd dimension"}
    assert len(report.rewritten) == 8
    assert_equal_to_transformers(source, report)


def test_a_tied_model_that_has_its_own_lm_head_uses_it(tmp_path: Path) -> None:
    """What training with a replaced lm_head leaves behind; transformers does not tie such weights either."""
    head = np.random.default_rng(5).standard_normal((210, 72)).astype(ml_dtypes.bfloat16)
    source = make_checkpoint(tmp_path / "model", tie_word_embeddings=True, replace={"lm_head.weight": head})
    assert_equal_to_transformers(source, export(source, tmp_path / "out", embedding="float32"))


def test_a_sharded_checkpoint_written_by_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=210,
        hidden_size=72,
        intermediate_size=150,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=96,
        initializer_range=0.15,
        rope_parameters={**LLAMA3, "rope_theta": 500000.0},
    )
    source = tmp_path / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source, max_shard_size="60kB")
    write_tokenizer(source)
    assert len(list(source.glob("model-*.safetensors"))) > 2
    assert_equal_to_transformers(source, export(source, tmp_path / "out"))


def test_any_host_with_default_settings_runs_the_function_body(tmp_path: Path) -> None:
    report = export(make_checkpoint(tmp_path / "model"), tmp_path / "out")
    default = ort.InferenceSession(str(report.path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = GrowingCache(plain_session(report.path))(ids_of(1, 9))
    assert relative_difference(GrowingCache(default)(ids_of(1, 9)), expected) < TOLERANCE


@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_library_and_the_function_body_agree(tmp_path: Path, row_multiplier: str, bias: bool) -> None:
    source = make_checkpoint(tmp_path / "model", attention_bias=bias, mlp_bias=bias)
    report = export(source, tmp_path / "out", row_multiplier=row_multiplier, stages=3)
    options = ort.SessionOptions()
    options.add_session_config_entry("fairy2i.kernel", "exact")
    fairy2i_runtime.register(options)
    session = ort.InferenceSession(str(report.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    expected = GrowingCache(plain_session(report.path), 2)(ids_of(2, 20))
    assert relative_difference(GrowingCache(session, 2)(ids_of(2, 20)), expected) < TOLERANCE


def test_the_graph(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    export(source, tmp_path / "out")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == "ai.fairy2i"]
    modules = {"self_attn.q_proj+k_proj+v_proj": 3, "self_attn.o_proj": 1, "mlp.gate_proj+up_proj": 2, "mlp.down_proj": 1}
    assert [node.name for node in nodes] == [f"model.layers.{i}.{m}" for i in range(2) for m in modules] + ["lm_head"]
    layers = [*2 * list(modules.values()), 1]
    assert [node.op_type for node in nodes] == [
        f"Fairy2iMatMul{count}" if count > 1 else "Fairy2iMatMul" for count in layers
    ]
    assert [len(node.output) for node in nodes] == layers
    attributes = {a.name: a.i for a in next(n for n in nodes if n.name.endswith("1.mlp.down_proj")).attribute}
    assert attributes == {"K": 150, "N": 72, "stages": 2, "layout_version": 1, "scale_scope": 0}
    attributes = {a.name: a.i for a in next(n for n in nodes if len(n.output) == 2).attribute}
    own = {"N_0": 150, "stages_0": 2, "N_1": 150, "stages_1": 2}
    assert attributes == {"K": 72, "layout_version": 1, "scale_scope": 0, **own}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert [value.name for value in model.graph.input][:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert [value.name for value in model.graph.output][:3] == ["logits", "present.0.key", "present.0.value"]
    names = ["Fairy2iMatMul", "Fairy2iMatMul2", "Fairy2iMatMul3"]
    assert [(f.domain, f.name) for f in model.functions] == [("ai.fairy2i", name) for name in names]


def test_the_reference_evaluator_runs_a_node_of_an_exported_model(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    source = make_checkpoint(tmp_path / "model", attention_bias=True)
    report = export(source, tmp_path / "out", row_multiplier="rms")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    node = next(n for n in model.graph.node if n.name == "model.layers.1.self_attn.o_proj")
    graph = onnx.helper.make_graph(
        [node],
        "one_layer",
        [onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, ["batch", "sequence", 72])],
        [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, ["batch", "sequence", 72])],
        [tensor for tensor in model.graph.initializer if tensor.name in node.input],
    )
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions, ir_version=8)
    x = np.random.default_rng(0).standard_normal((1, 4, 72)).astype(np.float32)
    got = ReferenceEvaluator(single).run(None, {node.input[0]: x})[0]

    rewritten = [linear.name for linear in report.rewritten]
    layer = dequantized_torch_model(source, rewritten, row_multiplier="rms").get_submodule(node.name)
    expected = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_more_tokens_than_the_context_is_an_error(tmp_path: Path) -> None:
    report = export(make_checkpoint(tmp_path / "model"), tmp_path / "out", context_length=24)
    session = plain_session(report.path)
    assert np.isfinite(GrowingCache(session)(ids_of(1, 24))).all()
    with pytest.raises(Exception, match="RotaryEmbedding"):
        GrowingCache(session)(ids_of(1, 25))
    cache = GrowingCache(session)
    cache(ids_of(1, 24))
    with pytest.raises(Exception, match="RotaryEmbedding"):
        cache(ids_of(1, 1))
