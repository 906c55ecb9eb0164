"""OLMo 2: norms behind attention and feed-forward blocks instead of before them, and on whole queries and keys."""

from __future__ import annotations

from typing import Any

from fairy2i_export.decoder.architectures.common import read_decoder
from fairy2i_export.decoder.config_values import flag
from fairy2i_export.decoder.description import Decoder, Names

NAME = "Olmo2ForCausalLM"
_NAMES = Names(
    attention_norm=None,
    q_norm="model.layers.{}.self_attn.q_norm",
    k_norm="model.layers.{}.self_attn.k_norm",
    attention_post_norm="model.layers.{}.post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="model.layers.{}.post_feedforward_layernorm",
)


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of an Olmo2ForCausalLM; errors as :func:`read_decoder`."""
    config = {"rms_norm_eps": 1e-5, **config}
    bias = flag(config, "attention_bias")
    return read_decoder(config, NAME, "decoder", names=_NAMES, qkv_bias=bias, o_bias=bias, qk_norm="all")
