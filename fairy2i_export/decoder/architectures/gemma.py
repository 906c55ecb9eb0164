"""Gemma 2 and the text models of Gemma 3.

Both scale the embedding by the root of its width, write norms as 1 + weight, norm the outputs of attention and feed-forward
blocks too, and mix full with sliding layers. Gemma 2 caps scores and logits; Gemma 3 norms the heads of queries and keys and
has a rotary embedding of its own for sliding layers.
"""

from __future__ import annotations

import math
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
from fairy2i_export.decoder.config_values import flag, positive_float, positive_int
from fairy2i_export.decoder.description import Block, Decoder, Names
from fairy2i_export.decoder.rope import Rope, by_layer_type, read_rope
from fairy2i_export.errors import ArchitectureError

GEMMA2 = "Gemma2ForCausalLM"
GEMMA3 = "Gemma3ForCausalLM"
_NAMES = Names(
    attention_post_norm="model.layers.{}.post_attention_layernorm",
    mlp_norm="model.layers.{}.pre_feedforward_layernorm",
    mlp_post_norm="model.layers.{}.post_feedforward_layernorm",
)
_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def describe_gemma2(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a Gemma2ForCausalLM; errors as :func:`read_decoder`."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    config = {**_DEFAULTS, "max_position_embeddings": 8192, **caps, **config}
    pattern = [SLIDING if (layer + 1) % 2 else FULL for layer in range(layers(config))]
    rope = read_rope(config, max_positions(config))
    blocks = blocks_by_type(config, layer_types(config, pattern), rope, rope, window(config))
    return _describe(config, GEMMA2, "gemma2", _NAMES, blocks, attention_softcap=_cap(config, "attn_logit_softcapping"))


def describe_gemma3(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a Gemma3ForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, "max_position_embeddings": 131072, **config}
    if _cap(config, "attn_logit_softcapping") is not None:
        raise ArchitectureError(
            f"config.json: attn_logit_softcapping is not supported for {GEMMA3}; transformers ignores it"
        )
    every = positive_int(config, "sliding_window_pattern", 6)
    pattern = [SLIDING if (layer + 1) % every else FULL for layer in range(layers(config))]
    blocks = blocks_by_type(config, layer_types(config, pattern), *_gemma3_ropes(config), window(config))
    names = replace(_NAMES, q_norm="model.layers.{}.self_attn.q_norm", k_norm="model.layers.{}.self_attn.k_norm")
    return _describe(config, GEMMA3, "gemma3_text", names, blocks)


def _describe(
    config: dict[str, Any], architecture: str, genai_type: str, names: Names, blocks: tuple[Block, ...], **features: Any
) -> Decoder:
    bias = flag(config, "attention_bias")
    return read_decoder(
        config,
        architecture,
        genai_type,
        names=names,
        blocks=blocks,
        activation_key="hidden_activation",
        default_activation="gelu_pytorch_tanh",
        qkv_bias=bias,
        o_bias=bias,
        norm_offset=1.0,
        embedding_scale=math.sqrt(positive_int(config, "hidden_size")),
        attention_scale=positive_float(config, "query_pre_attn_scalar") ** -0.5,
        logits_softcap=_cap(config, "final_logit_softcapping"),
        **features,
    )


def _cap(config: dict[str, Any], key: str) -> float | None:
    return None if config.get(key) is None else positive_float(config, key)


def _gemma3_ropes(config: dict[str, Any]) -> tuple[Rope, Rope]:
    """(of full layers, of sliding layers): nested by layer type, or in the older spelling beside each other."""
    types, positions = by_layer_type(config), max_positions(config)
    return (
        read_rope({"rope_parameters": types[FULL]}, positions, default_theta=1000000.0),
        read_rope({"rope_parameters": types[SLIDING]}, positions, default_theta=10000.0),
    )
