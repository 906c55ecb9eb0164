"""The model architectures that can be exported: one small file each, listed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairy2i_export.architectures import llama
from fairy2i_export.config import Decoder
from fairy2i_export.errors import ArchitectureError, CheckpointError

ARCHITECTURES: dict[str, Callable[[dict[str, Any]], Decoder]] = {llama.NAME: llama.describe}

_HEAD_DIM_STEP = 8  # of GroupQueryAttention on the CPU; it fails when run, not when loaded


def describe(config: dict[str, Any]) -> Decoder:
    """Translate a parsed config.json.

    Raises:
        ArchitectureError: an architecture or a feature that is not supported.
        CheckpointError: a missing or impossible value, or a checkpoint that is already quantized some other way.
    """
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json: quantization_config: the checkpoint is already quantized another way; "
            "export the floating-point (latent) weights"
        )
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        found = ", ".join(map(str, names)) if isinstance(names, list) and names else repr(config.get("model_type"))
        raise ArchitectureError(
            f"config.json: architecture {found} is not supported; supported are {', '.join(sorted(ARCHITECTURES))}"
        )
    decoder = ARCHITECTURES[names[0]](config)
    if decoder.head_dim % _HEAD_DIM_STEP:
        raise ArchitectureError(
            f"config.json: heads of {decoder.head_dim} values are not supported; ONNX Runtime's GroupQueryAttention needs a "
            f"multiple of {_HEAD_DIM_STEP}"
        )
    return decoder
