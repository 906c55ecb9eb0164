"""Every architecture against transformers: prompt and 20 single tokens, one text, and a batch of three with left padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from architecture_helpers import (
    VOCABULARY,
    dequantized,
    exact_session,
    largest_difference,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.architectures import ARCHITECTURES, describe
from fairy2i_export.errors import ArchitectureError, CheckpointError

TOLERANCE = 1e-4  # of the largest logit
PROMPT, STEPS = 12, 20
PADDING = (0, 5, 9)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

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
        {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 6, "attention_bias": True, "mlp_bias": True},
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
    pytest.param("olmo2", {}, id="olmo2"),
    pytest.param("olmo2", {"attention_bias": True, "num_key_value_heads": 4}, id="olmo2, biases"),
]


def random_ids(batch: int, length: int = PROMPT + STEPS) -> np.ndarray:
    return np.random.default_rng(3).integers(3, VOCABULARY, (batch, length))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_logits_equal_those_of_transformers(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "model", kind, **settings)
    context = {"context_length": 48} if "original_max_position_embeddings" in settings else {}
    report = export(source, tmp_path / "out", embedding="float32", **context)
    assert not report.kept
    assert not any("not used" in warning for warning in report.warnings)
    model, session = dequantized(source, report), exact_session(report.path)
    for padding in ((0,), PADDING):
        ids = random_ids(len(padding))
        mask = (np.arange(ids.shape[1]) >= np.array(padding)[:, None]).astype(np.int64)
        expected = reference_logits(model, ids, mask)
        assert largest_difference(stepwise_logits(session, ids, mask, PROMPT), expected, mask) < TOLERANCE
