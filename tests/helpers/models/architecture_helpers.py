"""Tiny random transformers models of every architecture, and their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnxruntime as ort
import pytest

import fairy2i_runtime
from export_helpers import cache_shapes, write_tokenizer
from fairy2i_export import ExportReport, quantize
from fairy2i_export.codes.layout import unpack
from fairy2i_export.output.contract.nodes import read_nodes

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TOLERANCE = 2e-5  # of the largest logit
PROMPT, STEPS = 12, 20
PADDING = (0, 5, 9)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}


def random_ids(batch: int, length: int = PROMPT + STEPS) -> npt.NDArray[np.int64]:
    """Tokens [batch, length], none of them special."""
    return np.random.default_rng(3).integers(3, VOCABULARY, (batch, length))


def save_tiny(directory: Path, kind: str, *, seed: int = 0, **settings: Any) -> Path:
    """Save a random model of a transformers model type as safetensors, with a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones or zeros otherwise, which hide mistakes
                parameter.add_(torch.rand_like(parameter) - 0.5)
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(directory)
    write_tokenizer(directory, words=90)
    return directory


def dequantized(directory: Path, report: ExportReport) -> Any:
    """The transformers model in float32 with dequantized weights in the rewritten layers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    for linear in report.rewritten:
        module = model.get_submodule(linear.name)
        q = quantize(module.weight.detach().numpy(), report.options.stages, name=linear.name)
        module.weight = torch.nn.Parameter(torch.from_numpy(q.dequantize("none")))  # a new one: unties a tied lm_head
    return model


def take_parts(model: Any, folder: Path) -> Any:
    """Give a transformers model the layers and norms of an exported folder; returns it."""
    import torch

    for node in read_nodes(folder / "model.onnx"):
        dense = torch.from_numpy(unpack(node.operands).dequantize("none"))
        model.get_submodule(node.name).weight = torch.nn.Parameter(dense)  # a new one: unties a tied lm_head
    written = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    offset = 1.0 if model.config.model_type.startswith("gemma") else 0.0  # which the graph has in it
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.from_numpy(onnx.numpy_helper.to_array(written[name]) - np.float32(offset))
    return model


def reference_logits(model: Any, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits [batch, sequence, vocabulary] of the whole sequence at once; positions as ``generate`` counts them."""
    import torch

    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), position_ids=torch.from_numpy(positions)
        ).logits.numpy()
    return logits


def exact_session(folder: Path) -> ort.InferenceSession:
    """A session with the C library in exact mode."""
    options = ort.SessionOptions()
    options.add_session_config_entry("fairy2i.kernel", "exact")
    options.log_severity_level = 3
    fairy2i_runtime.register(options)
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def stepwise_logits(
    session: ort.InferenceSession, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], prompt: int
) -> npt.NDArray[np.float32]:
    """Logits of the prompt in one run, then of one token after the other, the cache growing."""
    types = {item.name: np.float16 if item.type == "tensor(float16)" else np.float32 for item in session.get_inputs()}
    past = {name: np.zeros((len(ids), heads, 0, size), types[name]) for name, (heads, size) in cache_shapes(session).items()}
    result = []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, ids.shape[1]))]:
        outputs = session.run(None, {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], **past})
        result.append(outputs[0])
        past = dict(zip(past, outputs[1:], strict=True))
    return np.concatenate(result, axis=1)


def largest_difference(
    got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], mask: npt.NDArray[np.int64]
) -> float:
    """Largest difference at real tokens, relative to the largest expected magnitude."""
    real = mask.astype(bool)
    return float(np.abs(got[real].astype(np.float64) - expected[real]).max() / np.abs(expected[real]).max())


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}


CASES = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, id="llama3 rope, tied"),
    pytest.param("llama", {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}, id="llama, yarn, biases"),
    pytest.param("mistral", {"sliding_window": 6}, id="mistral, window shorter than the prompt"),
    pytest.param("mistral", {"sliding_window": 17}, id="mistral, window reached while decoding"),
    pytest.param("mistral", {"sliding_window": None}, id="mistral without window"),
    pytest.param("qwen2", {}, id="qwen2"),
    pytest.param("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, id="qwen2, window"),
    pytest.param("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1000000.0}}, id="qwen2, yarn"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param("qwen3", {"attention_bias": True, "head_dim": 8, "tie_word_embeddings": True}, id="qwen3, biases, tied"),
    pytest.param("smollm3", {"num_hidden_layers": 4}, id="smollm3"),
    pytest.param(
        "smollm3",
        {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
        },
        id="smollm3, window without rope",
    ),
    pytest.param("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 24}, id="gemma2"),
    pytest.param("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **MIXED}, id="gemma2, hard caps"),
    pytest.param("gemma3_text", {**MIXED, "query_pre_attn_scalar": 24}, id="gemma3"),
    pytest.param("gemma3_text", {"sliding_window": 6, "num_hidden_layers": 7}, id="gemma3, five to one"),
    pytest.param(
        "gemma3_text",
        {
            **MIXED,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
            "final_logit_softcapping": 4.0,
            "tie_word_embeddings": False,
        },
        id="gemma3, linear rope, untied",
    ),
    pytest.param("phi3", {}, id="phi3"),
    pytest.param("phi3", {"sliding_window": 6, "tie_word_embeddings": True}, id="phi3, window, tied"),
    pytest.param(
        "phi3",
        # transformers checks the number of factors against hidden_size / heads
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 48,
            "hidden_size": 64,
            "max_position_embeddings": 96,
        },
        id="phi3, longrope within the original context",
    ),
    pytest.param(
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        id="phi3, half of every head rotated",
    ),
    pytest.param(
        "phi3",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "head_dim": 32,
            "hidden_size": 128,
        },
        id="phi3, 16 of 32 rotated",
    ),
    pytest.param("olmo2", {}, id="olmo2"),
    pytest.param("olmo2", {"attention_bias": True, "num_key_value_heads": 4}, id="olmo2, biases"),
]
