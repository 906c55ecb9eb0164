"""The files of a checkpoint: every one is opened here, so that none can stall the exporter, fill its memory or lead elsewhere.

A file has to be a regular one of a size that its kind may have. A link may lead to another place of the checkpoint's folder, or
out of a snapshot of the Hugging Face cache into that cache's own blobs: whatever else it names is somebody's file, which must not
be carried into the result. Weights alone may be linked from anywhere: they are large, and nothing but safetensors is read as such.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from fairy2i_export.errors import CheckpointError
from fairy2i_runtime.regular_file import (
    JSON_BYTES,
    TOKENIZER_BYTES,
    NestingError,
    UnusableFileError,
    open_regular,
    parse_json,
    read_opened,
)

WEIGHT_BYTES = 1 << 50
_WHAT = "a checkpoint's file"
TEMPLATES = "additional_chat_templates"  # a folder of them
_LARGE = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "model.safetensors.index.json")
_SMALL = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def check_files(directory: Path) -> None:
    """Look at all files that may be read of a folder besides weights, whoever opens them then.

    Raises:
        CheckpointError: one of them is no regular file, too large, or a link out of the folder.
    """
    paths = [directory / name for name in (*_SMALL, *_LARGE)]
    paths += sorted((directory / TEMPLATES).glob("*.jinja"))
    for path in paths:
        if os.path.exists(path):
            open_file(path, directory).close()


def open_file(path: Path, root: Path | None = None) -> BinaryIO:
    """Open one of those files for reading.

    Args:
        path: of the file.
        root: the folder that a link must not leave; that of the file by default.

    Raises:
        CheckpointError: as :func:`check_files`, or it cannot be read.
        FileNotFoundError: there is none.
    """
    check_link(path, root)
    return _opened(path, _limit(path), _WHAT)


def open_weights_file(path: Path) -> BinaryIO:
    """Open a safetensors file, wherever a link leads to; errors as :func:`open_file`, one that is missing included."""
    try:
        return _opened(path, WEIGHT_BYTES, "safetensors")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def read_file(path: Path, root: Path | None = None) -> bytes:
    """All of a file; arguments and errors as :func:`open_file`."""
    with open_file(path, root) as file:
        try:
            return read_opened(file, _limit(path), _WHAT)
        except UnusableFileError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error


def read_value(path: Path, root: Path | None = None) -> Any:
    """The JSON value in a file; arguments as :func:`open_file`.

    Raises:
        CheckpointError: as :func:`open_file`, or it is no JSON, or nested too deeply.
        FileNotFoundError: there is none.
    """
    try:
        return parse_json(read_file(path, root))
    except NestingError as error:
        raise CheckpointError(f"{path}: {error}; restore the file") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error


def copy_file(path: Path, target: Path, root: Path | None = None) -> None:
    """Copy a file; arguments and errors as :func:`open_file`.

    Raises:
        OSError: the copy cannot be written.
    """
    with open_file(path, root) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def check_link(path: Path, root: Path | None = None) -> None:
    """Raise CheckpointError if a file is a link, or lies behind one, that leaves ``root`` (by default the file's folder)."""
    folder, file = Path(os.path.realpath(root or path.parent)), Path(os.path.realpath(path))
    if file.is_relative_to(folder):
        return
    for place in (folder, *folder.parents):
        if place.name == "snapshots" and file.parent == place.parent / "blobs":
            return  # as huggingface_hub lays files out
    raise CheckpointError(
        f"{path}: is a link to {file}, outside of {root or path.parent}, whose contents would become part of the result; if they "
        "belong to the model, put a copy of the file in the place of the link, else remove it"
    )


def _limit(path: Path) -> int:
    return TOKENIZER_BYTES if path.name in _LARGE or path.name.endswith(".index.json") else JSON_BYTES


def _opened(path: Path, limit: int, what: str) -> BinaryIO:
    try:
        return open_regular(path, limit, what)
    except FileNotFoundError:
        raise
    except UnusableFileError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
