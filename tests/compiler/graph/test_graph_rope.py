"""Rotary tables and the reading of rope settings, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairy2i_export.decoder.rope import Rope, read_rope, stretch_context
from fairy2i_export.errors import ArchitectureError, CheckpointError
from fairy2i_export.onnx_graph.rope_tables import rotary_tables

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 8.0, "original_max_position_embeddings": 64}
SETTINGS: list[dict[str, Any]] = [
    {"rope_theta": 10000.0},
    {"rope_theta": 500000.0, "rope_scaling": None},
    {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
    {"rope_theta": 1000000.0, "rope_scaling": {"type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN, "attention_factor": 1.25, "truncate": False}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN, "mscale": 0.7, "mscale_all_dim": 0.4}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 1.0}},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("head_dim", [8, 24, 64])
def test_tables_equal_those_of_transformers(settings: dict[str, Any], head_dim: int) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=512, **settings
    )
    positions = torch.arange(512)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 1), positions)
    got = rotary_tables(read_rope(settings, 512), head_dim, 512)
    for table, expected in zip(got, (cos, sin), strict=True):
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, expected[0, :, : head_dim // 2].numpy(), atol=2e-7)


@pytest.mark.parametrize("original", [64, 512, 1024])  # 512 positions take the long factors, the short ones, the short ones
@pytest.mark.parametrize("fraction", [1.0, 0.75])
def test_phi3_tables_equal_those_of_transformers(original: int, fraction: float) -> None:
    import torch
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    head_dim = 32
    pairs = int(head_dim * fraction) // 2
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": fraction,
        "original_max_position_embeddings": original,
        "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.0 + 0.5 * i for i in range(pairs)],
    }
    config = Phi3Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=1024,
        original_max_position_embeddings=original,
        rope_parameters=dict(scaling),
    )
    cos, sin = Phi3RotaryEmbedding(config)(torch.zeros(1, 1), torch.arange(512)[None])
    rope = read_rope({"rope_parameters": scaling}, 1024, partial=True)
    for table, expected in zip(rotary_tables(rope, head_dim, 512), (cos, sin), strict=True):
        assert table.shape == (512, pairs)
        np.testing.assert_allclose(table, expected[0, :, :pairs].numpy(), atol=4e-7)
    old = {**scaling, "type": "su", "rope_type": None, "rope_theta": None, "original_max_position_embeddings": None}
    beside = {"rope_theta": 10000.0, "original_max_position_embeddings": original, "rope_scaling": old}
    assert read_rope(beside, 1024, partial=True, aliases={"su": "longrope"}) == rope
    with pytest.raises(CheckpointError, match=f"factor: expected {2 * pairs} numbers, one per rotated pair, found {pairs}"):
        rotary_tables(rope, 2 * head_dim, 512)


def test_llama3_scaling_uses_all_three_ranges() -> None:
    plain, _ = rotary_tables(Rope("default", 500000.0), 64, 2)
    scaled, _ = rotary_tables(Rope("llama3", 500000.0, 8.0, 1.0, 4.0, 64), 64, 2)
    assert scaled[1, 0] == plain[1, 0]  # short waves are kept
    angle = np.arccos(plain[1].astype(np.float64))
    ratio = np.arccos(np.minimum(scaled[1].astype(np.float64), 1)) / np.maximum(angle, 1e-9)
    assert ((ratio > 0.2) & (ratio < 0.9)).any()  # some are interpolated


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ArchitectureError, "default, linear, llama3, yarn, longrope"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, CheckpointError, "short_factor: expected a list"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": ["a"]}}, CheckpointError, "expected a number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, CheckpointError, "factor: expected a number"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "factor"),
        ({"rope_scaling": "linear"}, CheckpointError, "expected an object"),
        ({"rope_theta": -1}, CheckpointError, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, ArchitectureError, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, CheckpointError, "below"),
    ],
)
def test_what_is_not_supported_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_rope(settings, 512)


@pytest.mark.parametrize("entry", ["linear", ["linear", 2.0], 2.0])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_an_entry_that_is_no_object_cannot_be_stretched(key: str, entry: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: expected an object, got"):
        stretch_context({key: entry, "max_position_embeddings": 64}, "linear:2")
