"""Mistral: LLaMA with the same sliding window in every layer, or none."""

from __future__ import annotations

from typing import Any

from fairy2i_export.decoder.architectures.common import blocks_alike, max_positions, read_decoder, window
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.decoder.rope import read_rope

NAME = "MistralForCausalLM"
_DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a MistralForCausalLM; errors as :func:`read_decoder`."""
    config = {**_DEFAULTS, **config}
    blocks = blocks_alike(config, read_rope(config, max_positions(config)), window(config))
    return read_decoder(config, NAME, "mistral", blocks=blocks)
