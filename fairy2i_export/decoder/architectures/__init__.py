"""The model architectures that can be exported: one small file each, listed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairy2i_export.decoder.architectures import gemma, llama, mistral, olmo2, phi3, qwen, smollm3
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import ArchitectureError, CheckpointError

ARCHITECTURES: dict[str, Callable[[dict[str, Any]], Decoder]] = {
    llama.NAME: llama.describe,
    mistral.NAME: mistral.describe,
    qwen.QWEN2: qwen.describe_qwen2,
    qwen.QWEN3: qwen.describe_qwen3,
    smollm3.NAME: smollm3.describe,
    gemma.GEMMA2: gemma.describe_gemma2,
    gemma.GEMMA3: gemma.describe_gemma3,
    phi3.NAME: phi3.describe,
    olmo2.NAME: olmo2.describe,
}

_HEAD_DIM_STEP = 8  # of GroupQueryAttention on the CPU; it fails when run, not when loaded


def describe(config: dict[str, Any]) -> Decoder:
    """Translate a parsed config.json.

    Only the class name in ``architectures`` counts: code that a checkpoint brings along (``auto_map``) is never run.

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
            f"config.json: architecture {found} is not supported; supported are {', '.join(sorted(ARCHITECTURES))}. "
            "A model of another kind can be exported to ONNX by other tools and rewritten from there: "
            "fairy2i-export model.onnx"
        )
    decoder = ARCHITECTURES[names[0]](config)
    if decoder.head_dim % _HEAD_DIM_STEP:
        raise ArchitectureError(
            f"config.json: heads of {decoder.head_dim} values are not supported; ONNX Runtime's GroupQueryAttention needs a "
            f"multiple of {_HEAD_DIM_STEP}"
        )
    for rope in decoder.ropes:
        rotated = rope.rotated(decoder.head_dim)
        if rotated < 2 or rotated % 2:
            raise ArchitectureError(
                f"config.json: partial_rotary_factor {rope.fraction} rotates {rotated} of {decoder.head_dim} values of a head; "
                "expected an even number"
            )
    return decoder
