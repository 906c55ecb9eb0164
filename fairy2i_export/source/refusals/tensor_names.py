"""What the names of a checkpoint's tensors tell about how it was saved."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fairy2i_export.decoder.architectures import ARCHITECTURES, MODEL_TYPES
from fairy2i_export.decoder.description import Names
from fairy2i_export.errors import CheckpointError

_HEAD = f"{Names.lm_head}.weight"
_EMBEDDING = f"{Names.embedding}.weight"
_BASE_PREFIX = "model."  # of a model inside its class with a head
# what wrappers put into names -> who they are, and what gives the model without them
_WRAPPERS = {
    "base_model.model.": ("peft", "model.merge_and_unload().save_pretrained(NEW)"),
    "_orig_mod.": ("torch.compile", "model._orig_mod.save_pretrained(NEW)"),
    "_fsdp_wrapped_module.": ("FSDP", "accelerator.save_model(model, NEW)"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "accelerator.unwrap_model(model).save_pretrained(NEW)"),
    "module.": ("DataParallel, DDP or DeepSpeed", "model.module.save_pretrained(NEW)"),
}
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, _WRAPPERS))})")
# endings of names -> what quantized the weights; float checkpoints have none of them
_QUANTIZED = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "fp8 with scales",
    "weight.absmax": "bitsandbytes",
    "weight.quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
}


def check_names(directory: Path, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise CheckpointError where names tell that something else than the model itself was saved."""
    _check_adapter(directory, names)
    _check_wrapped(directory, names)
    for name in names:
        for ending, who in _QUANTIZED.items():
            if name.endswith(f".{ending}"):
                raise CheckpointError(
                    f"{directory}: tensor {name}: the weights are quantized already, with {who}; expected the floating-point "
                    "weights that they were made from"
                )
    if _is_known(config):
        _check_prefix(directory, names)


def _is_known(config: Mapping[str, Any]) -> bool:
    named, kind = config.get("architectures"), config.get("model_type")
    known = isinstance(named, list) and len(named) == 1 and str(named[0]) in ARCHITECTURES
    return known or (isinstance(kind, str) and kind in MODEL_TYPES)


def _check_adapter(directory: Path, names: Collection[str]) -> None:
    lora = [name for name in names if ".lora_A." in name or ".lora_embedding_A." in name]
    if lora:
        raise CheckpointError(
            f"{directory}: tensor {lora[0]}: holds the matrices of a LoRA adapter beside or without its base; merge them first, "
            "with peft: model.merge_and_unload().save_pretrained(NEW)"
        )


def _check_wrapped(directory: Path, names: Collection[str]) -> None:
    wrapped = [name for name in names if _WRAPPED.search(name)]
    if not wrapped:
        return
    found = list(dict.fromkeys(part for name in wrapped for part in _WRAPPED.findall(name)))
    prefix = _common_prefix(wrapped) if len(wrapped) == len(names) else ""
    how = (
        f"all tensors begin with {prefix}"
        if prefix
        else f"names of {len(wrapped)} of {len(names)} tensors hold {', '.join(found)}"
    )
    wrappers = " and ".join(_WRAPPERS[part][0] for part in found)
    raise CheckpointError(
        f"{directory}: {how} (the first is {wrapped[0]}): the model was saved inside its wrapper ({wrappers}). Save the inner "
        f"one: {_WRAPPERS[found[0]][1]}; or rename the tensors: {_renaming(found)}"
    )


def _common_prefix(names: list[str]) -> str:
    """Of the wrappers that every name begins with."""
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, _WRAPPERS))})+")
    starts = {match[0] if (match := pattern.match(name)) else "" for name in names}
    return starts.pop() if len(starts) == 1 else ""


def _renaming(parts: list[str]) -> str:
    """A line of Python that removes parts of names from a safetensors file."""
    new = "k" + "".join(f'.replace("{part}", "")' for part in parts)
    return (
        "from safetensors.torch import load_file, save_file; "
        f'save_file({{{new}: v for k, v in load_file(FILE).items()}}, FILE, {{"format": "pt"}})'
    )


def _check_prefix(directory: Path, names: Collection[str]) -> None:
    """The embedding under another name tells of a base model, or of a prefix that we do not know."""
    if _EMBEDDING in names:
        return
    if _EMBEDDING.removeprefix(_BASE_PREFIX) in names:
        raise CheckpointError(_base_model(directory))
    longer = [name for name in names if name.endswith(f".{_EMBEDDING}")]
    if len(longer) == 1:
        prefix = longer[0].removesuffix(_EMBEDDING)
        raise CheckpointError(
            f"{directory}: names of tensors begin with {prefix} ({longer[0]} where {_EMBEDDING} is expected): the model was saved "
            f"as a part of another one. Save the part alone, or rename the tensors: {_renaming([prefix])}"
        )


def _base_model(directory: Path) -> str:
    return (
        f"{directory}: holds a base model that was saved without its head ({_EMBEDDING.removeprefix(_BASE_PREFIX)} where "
        f"{_EMBEDDING} is expected). If config.json ties lm_head to the embedding, give it its head with transformers: "
        f'AutoModelForCausalLM.from_pretrained("{directory}").save_pretrained(NEW); else the head is not in this folder: take the '
        "model that it was cut from"
    )


def missing_message(directory: Path, tensor: str, names: Collection[str]) -> str:
    """For a tensor that is not there."""
    if tensor == _HEAD:
        return (
            f"{directory}: {_HEAD} is missing, and config.json does not tie it to the embedding: if the model shares the two, set "
            '"tie_word_embeddings": true in config.json; if not, the checkpoint is incomplete'
        )
    return (
        f"{directory}: tensor {tensor} is missing (the checkpoint has {len(names)} tensors"
        f"{f', the first is {min(names)}' if names else ''}); it is incomplete or not of the architecture its config.json names"
    )
