"""LLaMA 1, 2, 3 and every model that transformers loads as LlamaForCausalLM, SmolLM 1 and 2 among them."""

from __future__ import annotations

from typing import Any

from fairy2i_export.decoder.architectures.common import read_decoder
from fairy2i_export.decoder.config_values import flag
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import ArchitectureError

NAME = "LlamaForCausalLM"


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a LlamaForCausalLM; errors as :func:`read_decoder`."""
    if config.get("sliding_window") is not None:
        raise ArchitectureError(
            f"config.json: sliding_window is not supported for {NAME}, which transformers has no window for"
        )
    bias = flag(config, "attention_bias")
    return read_decoder(config, NAME, "llama", qkv_bias=bias, o_bias=bias, mlp_bias=flag(config, "mlp_bias"))
