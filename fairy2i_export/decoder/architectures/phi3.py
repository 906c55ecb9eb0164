"""Phi-3, 3.5 and Phi-4 (mini) text models: query, key and value in one matrix, gate and up in another.

Training quantizes a module's weight as one matrix, so the fused ones stay fused and their outputs are split.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fairy2i_export.decoder.architectures.common import blocks_alike, max_positions, read_decoder, window
from fairy2i_export.decoder.description import Decoder, Names
from fairy2i_export.decoder.rope import read_rope

NAME = "Phi3ForCausalLM"
_NAMES = replace(
    Names(),
    q=None,
    k=None,
    v=None,
    qkv="model.layers.{}.self_attn.qkv_proj",
    gate=None,
    up=None,
    gate_up="model.layers.{}.mlp.gate_up_proj",
)
_DEFAULTS = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a Phi3ForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, **config}
    # early checkpoints called LongRoPE "su" or, wrongly, "yarn"
    aliases = {"su": "longrope", "yarn": "longrope"}
    rope = read_rope(config, max_positions(config), partial=True, aliases=aliases)
    return read_decoder(config, NAME, "phi3", names=_NAMES, blocks=blocks_alike(config, rope, window(config)))
