"""LLaMA 1, 2, 3 and every model that transformers loads as LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from fairy2i_export.config import Decoder, Names, flag, positive_float, positive_int, read_rope
from fairy2i_export.errors import ArchitectureError

NAME = "LlamaForCausalLM"

_NAMES = Names(
    embedding="model.embed_tokens",
    attention_norm="model.layers.{}.input_layernorm",
    q="model.layers.{}.self_attn.q_proj",
    k="model.layers.{}.self_attn.k_proj",
    v="model.layers.{}.self_attn.v_proj",
    o="model.layers.{}.self_attn.o_proj",
    mlp_norm="model.layers.{}.post_attention_layernorm",
    gate="model.layers.{}.mlp.gate_proj",
    up="model.layers.{}.mlp.up_proj",
    down="model.layers.{}.mlp.down_proj",
    final_norm="model.norm",
    lm_head="lm_head",
)


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a LlamaForCausalLM.

    Raises:
        ArchitectureError: an activation, attention window or rope kind that is not supported.
        CheckpointError: missing or impossible values.
    """
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ArchitectureError(f"config.json: hidden_act {activation!r} is not supported; supported is silu")
    if config.get("sliding_window") is not None:
        raise ArchitectureError("config.json: sliding_window is not supported; only full attention is")
    hidden, heads = positive_int(config, "hidden_size"), positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    head_dim = positive_int(config, "head_dim", hidden // heads)
    max_positions = positive_int(config, "max_position_embeddings", 2048)
    if heads % kv_heads:
        raise ArchitectureError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    return Decoder(
        architecture=NAME,
        genai_type="llama",
        names=_NAMES,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size"),
        layers=positive_int(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=positive_int(config, "vocab_size"),
        max_positions=max_positions,
        norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        rope=read_rope(config, max_positions),
        tied=flag(config, "tie_word_embeddings"),
        attention_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )
