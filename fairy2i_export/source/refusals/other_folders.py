"""What a folder is that holds no checkpoint to export, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.files import open_weights_file, read_value

_ONNX = "model.onnx"
_ONNX_BYTES = 1 << 28  # of an exported model.onnx, whose weights lie beside it; a larger one is another's


def no_weights_message(directory: Path, single: str, index: str) -> str:
    """Why a folder has no weights that can be read: the first of the kinds below that fits."""
    known = what_else_it_is(directory)
    if known is not None:
        return known
    shards = _names(directory, "model*-of-*.safetensors")
    if shards:
        return f"{directory}: found {_few(shards)} but no {index}, which says what lies where; download it too"
    variants = [name for name in _names(directory, "model.*.safetensors") if not name.startswith("model.safetensors")]
    if variants:
        return (
            f"{directory}: found {_few(variants)}, a variant that is read only if it is asked for, but neither {single} nor "
            f"{index}; rename it to {single} if it is the one to export"
        )
    others = _names(directory, "*.safetensors")
    if others:
        return f"{directory}: found {_few(others)} but neither {single} nor {index}; the checkpoint is incomplete"
    return f"{directory}: no weights; expected {single} or {index} with its shards"


def what_else_it_is(directory: Path) -> str | None:
    """A message for a folder of a known other kind."""
    return next((message for kind in _KINDS if (message := kind(directory)) is not None), None)


def file_message(path: Path) -> str:
    """A message for a source that is a file."""
    if path.suffix.lower() == ".gguf":
        return f"{path}: {_GGUF}"
    return f"{path}: is a file; expected the directory that holds config.json and *.safetensors"


def _adapter(directory: Path) -> str | None:
    config = directory / "adapter_config.json"
    if not config.exists() and not _names(directory, "adapter_model*"):
        return None
    try:
        base = read_value(config)["base_model_name_or_path"]
    except (OSError, CheckpointError, KeyError, TypeError):
        base = None
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"{directory}: holds a LoRA or other adapter{of} and no model; merge it into its base first, with peft: "
        f'AutoPeftModelForCausalLM.from_pretrained("{directory}").merge_and_unload().save_pretrained(NEW), and save the tokenizer '
        "into NEW too"
    )


def _onnx(directory: Path) -> str | None:
    names = _names(directory, "*.onnx") or [f"onnx/{name}" for name in _names(directory / "onnx", "*.onnx")]
    if not names:
        return None
    name = _ONNX if _ONNX in names else names[0]
    if _is_exported(directory / name):
        return (
            f"{directory}: is an exported Fairy2i model already ({name}), to run with fairy2i; to export it in another way, give "
            "the checkpoint that it was made from"
        )
    return (
        f"{directory}: holds the ONNX model {name} and no safetensors; its linear layers can be rewritten: "
        f"fairy2i-export {directory / name}"
    )


def _is_exported(path: Path) -> bool:
    import onnx

    try:
        with open_weights_file(path) as file:
            model = onnx.ModelProto.FromString(file.read(_ONNX_BYTES))
    except Exception:  # the parser's exceptions have no common base
        return False
    return any(item.key.startswith("fairy2i.") for item in model.metadata_props)


_GGUF = (
    "is in llama.cpp's GGUF format, whose weights are usually quantized already; expected the safetensors checkpoint that it was "
    "made from"
)


def _gguf(directory: Path) -> str | None:
    names = _names(directory, "*.gguf")
    return f"{directory}: {_few(names)} {_GGUF}" if names else None


def _original(directory: Path) -> str | None:
    names = _names(directory, "consolidated*.pth") + _names(directory, "consolidated*.safetensors")
    if not names or (directory / "config.json").exists():
        return None
    return (
        f"{directory}: holds {_few(names)}, weights in the layout of the model's makers and not in that of transformers; take the "
        "model's repository for transformers (at Meta the one that ends in -hf), or convert it with the script "
        "convert_llama_weights_to_hf.py (or that of its kind) of transformers"
    )


def _sharded_training(directory: Path) -> str | None:
    names = _names(directory, "*.distcp") + _names(directory, "zero_to_fp32.py")
    if not names:
        return None
    return (
        f"{directory}: holds the state of a training that was distributed over processes ({_few(names)}); join it first: with "
        "DeepSpeed's zero_to_fp32.py (--safe_serialization), or `accelerate merge-weights` for FSDP"
    )


def _pickles(directory: Path) -> str | None:
    names = sorted({name for glob in ("*.bin", "*.pth", "*.pt") for name in _names(directory, glob)})
    if not names:
        return None
    return (
        f"{directory}: only pickle weights ({_few(names)}), which can execute code when read; expected "
        "safetensors. Convert once with transformers: AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(NEW, "
        "safe_serialization=True)"
    )


def _other_frameworks(directory: Path) -> str | None:
    names = [name for glob in ("*.h5", "*.msgpack", "*.npz") for name in _names(directory, glob)]
    if not names:
        return None
    return f"{directory}: only weights of another framework ({_few(names)}); expected safetensors"


def _deeper(directory: Path) -> str | None:
    """A checkpoint in a folder further down: a training run's, or the hub's cache."""
    if (directory / "config.json").exists():
        return None
    globs = ("*/config.json", "snapshots/*/config.json")
    found = [path.parent for glob in globs for path in directory.glob(glob) if _names(path.parent, "*.safetensors")]
    if not found:
        return None
    latest = max(found, key=_numbers)
    return f"{directory}: is no checkpoint itself, but {latest} is; name that"


def _tokenizer(directory: Path) -> str | None:
    if not _names(directory, "tokenizer*") or _names(directory, "*.safetensors") or (directory / "config.json").exists():
        return None
    return f"{directory}: holds a tokenizer only; expected a checkpoint: config.json, safetensors and tokenizer files"


def _numbers(path: Path) -> list[int | str]:
    """For an order in which checkpoint-1000 comes after checkpoint-500."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


_KINDS: tuple[Callable[[Path], str | None], ...] = (
    _adapter,
    _onnx,
    _gguf,
    _original,
    _sharded_training,
    _pickles,
    _other_frameworks,
    _deeper,
    _tokenizer,
)


def _names(directory: Path, glob: str) -> list[str]:
    return sorted(path.name for path in directory.glob(glob))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
