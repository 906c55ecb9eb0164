"""The model architectures that can be exported: one small file each, listed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fairy2i_export.decoder.architectures import gemma, ifairy, llama, mistral, olmo2, phi3, qwen, smollm3
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.decoder.pairs import PairNames
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
    ifairy.NAME: ifairy.describe,
}

# model_type in config.json -> the class in "architectures"
MODEL_TYPES = {
    "llama": llama.NAME,
    "mistral": mistral.NAME,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "smollm3": smollm3.NAME,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "phi3": phi3.NAME,
    "olmo2": olmo2.NAME,
    "complexnet": ifairy.NAME,
}
# the class in "architectures" -> pairs of tensors that are read as one
PAIRS: dict[str, tuple[PairNames, ...]] = {ifairy.NAME: ifairy.PAIRS}
_QUANTIZATION = ("quantization_config", "compression_config")  # of transformers, of compressed-tensors' older versions
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
}

_HEAD_DIM_STEP = 8  # of GroupQueryAttention on the CPU; it fails when run, not when loaded


def describe(config: dict[str, Any]) -> Decoder:
    """Translate a parsed config.json.

    Only the class name in ``architectures`` counts: code that a checkpoint brings along (``auto_map``) is never run.

    Raises:
        ArchitectureError: an architecture or a feature that is not supported.
        CheckpointError: a missing or impossible value, or a checkpoint that is already quantized some other way.
    """
    check_float(config)
    names = class_names(config)
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ArchitectureError(
            f"config.json: architecture {', '.join(names)} is not supported; supported are {', '.join(sorted(ARCHITECTURES))}. "
            f"{_other_ways(config, names)}"
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


def pairs_in(config: Mapping[str, Any]) -> tuple[PairNames, ...]:
    """The kinds of pairs that a checkpoint with this config.json stores."""
    names = config.get("architectures")
    return PAIRS.get(str(names[0]), ()) if isinstance(names, list) and len(names) == 1 else ()


def has_complex_weights(config: Mapping[str, Any]) -> bool:
    """Whether it is a model of complex weights, whose way of being quantized is its own."""
    return bool(pairs_in(config))


def check_float(config: dict[str, Any]) -> None:
    """Raise CheckpointError if a config.json says that the weights are quantized already."""
    for key in _QUANTIZATION:
        if entry := config.get(key):
            method = entry.get("quant_method") if isinstance(entry, dict) else None
            with_what = f" with {_METHODS.get(method, method)}" if isinstance(method, str) else ""
            raise CheckpointError(
                f"config.json: {key}: the checkpoint is already quantized another way{with_what}; "
                "export the floating-point (latent) weights that it was made from"
            )


def class_names(config: dict[str, Any]) -> list[str]:
    """``architectures`` of a config.json.

    Raises:
        ArchitectureError: there is none.
    """
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    kind = config.get("model_type")
    expected = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if expected is None:
        raise ArchitectureError(
            f'config.json: names no architectures ("architectures" is {names!r}), and model_type {kind!r} is not supported; '
            f"supported are {', '.join(sorted(ARCHITECTURES))}. {_OTHER_TOOLS}"
        )
    raise ArchitectureError(
        f'config.json: names no architectures ("architectures" is {names!r}); for a model_type {kind!r} with lm_head add '
        f'"architectures": ["{expected}"]'
    )


_OTHER_TOOLS = (
    "A model of another kind can be exported to ONNX by other tools and rewritten from there: fairy2i-export model.onnx"
)


def _other_ways(config: dict[str, Any], names: list[str]) -> str:
    kind = config.get("model_type")
    expected = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if expected is not None and len(names) == 1 and names[0] == expected.replace("ForCausalLM", "Model"):
        return (
            f"{names[0]} is the model saved without its head; if the checkpoint has lm_head, or ties it to the embedding, write "
            f'"architectures": ["{expected}"]'
        )
    return _OTHER_TOOLS
