"""Where the checkpoint comes from: a local directory, or a Hugging Face hub id that is downloaded into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.checkpoint import Checkpoint, open_checkpoint

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def open_source(source: str | Path) -> Checkpoint:
    """Open a checkpoint directory, or download one from the hub first.

    Raises:
        OptionError: if the source is an .onnx file.
        CheckpointError: if it does not exist, cannot be downloaded or is damaged.
    """
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        raise OptionError(f"{source}: is an ONNX model; expected a checkpoint, a directory with config.json and safetensors")
    if path.exists() or not _HUB_ID.fullmatch(str(source)):
        return open_checkpoint(path)
    return open_checkpoint(_download(str(source)), name=str(source))


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(repo_id, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id}: no such directory, and the Hugging Face hub cannot be reached to download it; "
            "give a local checkpoint directory"
        ) from error
    except Exception as error:  # whatever the hub, its client or the network have to say: types differ between versions
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{repo_id}: no such directory, and downloading it from the Hugging Face hub failed: {reason}"
        ) from error
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{repo_id}: this hub repository has no safetensors weights at its top level; convert it with transformers "
            f'first: AutoModelForCausalLM.from_pretrained("{repo_id}").save_pretrained(NEW)'
        )
    return directory
