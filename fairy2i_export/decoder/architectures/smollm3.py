"""SmolLM3: LLaMA in which every fourth layer knows nothing of positions."""

from __future__ import annotations

from typing import Any

from fairy2i_export.decoder.architectures.common import (
    FULL,
    SLIDING,
    layer_types,
    layers,
    max_positions,
    read_decoder,
    window,
)
from fairy2i_export.decoder.config_values import flag, positive_int, shown
from fairy2i_export.decoder.description import Block, Decoder
from fairy2i_export.decoder.rope import read_rope
from fairy2i_export.errors import CheckpointError

NAME = "SmolLM3ForCausalLM"
_DEFAULTS = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True}


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a SmolLM3ForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, **config}
    rope = read_rope(config, max_positions(config), default_theta=2000000.0)
    rotated = _rotated_layers(config)
    width = window(config) if flag(config, "use_sliding_window") else None
    types = layer_types(config, [FULL if width is None or has_rope else SLIDING for has_rope in rotated])
    bias = flag(config, "attention_bias")
    return read_decoder(
        config,
        NAME,
        "smollm3",
        blocks=tuple(
            Block(rope if has_rope else None, width if kind == SLIDING else None)
            for has_rope, kind in zip(rotated, types, strict=True)
        ),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=flag(config, "mlp_bias"),
    )


def _rotated_layers(config: dict[str, Any]) -> list[bool]:
    """For every layer whether queries and keys are rotated (1 in ``no_rope_layers``)."""
    count = layers(config)
    listed = config.get("no_rope_layers")
    if listed is None:
        interval = positive_int(config, "no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if not isinstance(listed, list) or len(listed) < count or any(value not in (0, 1) for value in listed):
        raise CheckpointError(
            f"config.json: no_rope_layers: expected 0 or 1 for each of {count} layers, got {shown(listed)}"
        )
    return [bool(value) for value in listed[:count]]
