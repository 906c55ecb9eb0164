"""What the architecture files share: most of a config.json is spelled alike everywhere."""

from __future__ import annotations

from typing import Any

from fairy2i_export.decoder.config_values import MAX_POSITIONS, flag, positive_float, positive_int, shown, word
from fairy2i_export.decoder.description import ACTIVATIONS, Block, Decoder, Names
from fairy2i_export.decoder.rope import Rope, read_rope
from fairy2i_export.errors import ArchitectureError, CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"


def read_decoder(
    config: dict[str, Any],
    architecture: str,
    genai_type: str,
    *,
    names: Names | None = None,
    blocks: tuple[Block, ...] | None = None,
    activation_key: str = "hidden_act",
    default_activation: str = "silu",
    **features: Any,
) -> Decoder:
    """Build a description from the usual keys of a config.json.

    Args:
        config: the parsed config.json, with the architecture's own defaults filled in.
        architecture: class name in it.
        genai_type: model type for onnxruntime-genai.
        names: module names; LLaMA's by default.
        blocks: what differs between layers; by default every layer sees everything and rotates all of every head.
        activation_key: where the activation is named.
        default_activation: of the architecture.
        **features: further fields of :class:`Decoder`.

    Raises:
        ArchitectureError: an activation or another feature that is not supported.
        CheckpointError: missing or impossible values.
    """
    activation = word(config, activation_key, default_activation)
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"config.json: {activation_key} {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    if config.get("use_bidirectional_attention"):
        raise ArchitectureError("config.json: use_bidirectional_attention is not supported; a decoder looks back only")
    hidden, (heads, kv_heads) = positive_int(config, "hidden_size"), attention_heads(config)
    blocks = blocks or blocks_alike(config, read_rope(config, max_positions(config)), None)
    # checkpoints that are meant for YaRN often keep the context they were trained with in max_position_embeddings
    stretched = [int(b.rope.factor * b.rope.original_max_positions) for b in blocks if b.rope and b.rope.kind == "yarn"]
    return Decoder(
        architecture=architecture,
        genai_type=genai_type,
        names=names or Names(),
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size"),
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=positive_int(config, "head_dim", hidden // heads),
        vocab_size=positive_int(config, "vocab_size"),
        max_positions=min(max([max_positions(config), *stretched]), MAX_POSITIONS),
        norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        tied=flag(config, "tie_word_embeddings"),
        activation=ACTIVATIONS[activation],
        **features,
    )


def attention_heads(config: dict[str, Any]) -> tuple[int, int]:
    """Heads of queries, and of keys and values.

    Raises:
        ArchitectureError: the former are no multiple of the latter.
        CheckpointError: missing or impossible values.
    """
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ArchitectureError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    return heads, kv_heads


def layers(config: dict[str, Any]) -> int:
    """Number of layers."""
    return positive_int(config, "num_hidden_layers")


def max_positions(config: dict[str, Any]) -> int:
    """The longest context the model was made for."""
    return positive_int(config, "max_position_embeddings", 2048)


def window(config: dict[str, Any]) -> int | None:
    """The sliding window; None where there is none."""
    return None if config.get("sliding_window") is None else positive_int(config, "sliding_window")


def blocks_alike(config: dict[str, Any], rope: Rope, width: int | None) -> tuple[Block, ...]:
    """The same window in every layer."""
    return (Block(rope, width),) * layers(config)


def layer_types(config: dict[str, Any], default: list[str]) -> list[str]:
    """``layer_types`` of config.json, or the architecture's pattern.

    Raises:
        ArchitectureError: a type that is neither full nor sliding attention.
        CheckpointError: not one type per layer.
    """
    types = config.get("layer_types")
    if types is None:
        types = default
    if not isinstance(types, list) or len(types) != layers(config):
        raise CheckpointError(f"config.json: layer_types: expected one of {layers(config)} layers each, got {shown(types)}")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise ArchitectureError(
                f"config.json: layer_types: {shown(kind)} is not supported; supported are {FULL}, {SLIDING}"
            )
    return types


def blocks_by_type(
    config: dict[str, Any], types: list[str], full: Rope | None, sliding: Rope | None, width: int | None
) -> tuple[Block, ...]:
    """Full and sliding layers mixed, each kind with its rotary embedding.

    Raises:
        CheckpointError: sliding layers without a sliding_window.
    """
    if SLIDING in types and width is None:
        raise CheckpointError("config.json: layer_types has sliding_attention, but sliding_window is missing")
    return tuple(Block(sliding, width) if kind == SLIDING else Block(full) for kind in types)
