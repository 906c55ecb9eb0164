"""Qwen 2 and 2.5 (biases at query, key and value) and Qwen 3 (norms on every head of query and key)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fairy2i_export.decoder.architectures.common import (
    FULL,
    SLIDING,
    blocks_by_type,
    layer_types,
    layers,
    max_positions,
    read_decoder,
    window,
)
from fairy2i_export.decoder.config_values import flag, positive_int
from fairy2i_export.decoder.description import Block, Decoder, Names
from fairy2i_export.decoder.rope import read_rope

QWEN2 = "Qwen2ForCausalLM"
QWEN3 = "Qwen3ForCausalLM"
_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def describe_qwen2(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a Qwen2ForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, **config}
    return read_decoder(config, QWEN2, "qwen2", blocks=_blocks(config), qkv_bias=True)


def describe_qwen3(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a Qwen3ForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, "head_dim": 128, **config}
    names = replace(Names(), q_norm="model.layers.{}.self_attn.q_norm", k_norm="model.layers.{}.self_attn.k_norm")
    bias = flag(config, "attention_bias")
    return read_decoder(config, QWEN3, "qwen3", names=names, blocks=_blocks(config), qkv_bias=bias, o_bias=bias)


def _blocks(config: dict[str, Any]) -> tuple[Block, ...]:
    """The upper layers may have a sliding window."""
    rope = read_rope(config, max_positions(config))
    width = window(config) if flag(config, "use_sliding_window") else None
    first = positive_int(config, "max_window_layers")
    pattern = [SLIDING if width is not None and layer >= first else FULL for layer in range(layers(config))]
    return blocks_by_type(config, layer_types(config, pattern), rope, rope, width)
