"""The other files of a model folder: onnxruntime-genai's configuration, tokenizer, and our operator library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fairy2i_export.compile.run import MODEL
from fairy2i_runtime.errors import LibraryError
from fairy2i_runtime.ops.library import library_path

_GENAI = "genai_config.json"
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "config.json",
)  # fmt: skip


def copy_library(folder: Path) -> str:
    """Put the operator library beside the model; returns a warning if there is none to copy, else nothing."""
    try:
        library = Path(library_path())
    except LibraryError as error:
        return f"the operator library was not copied into the folder: {error}"
    shutil.copyfile(library, folder / library.name)
    return ""


def copy_genai_files(source: Path, folder: Path) -> tuple[str, ...]:
    """Where the source is the decoder of an onnxruntime-genai folder, make the result one too.

    Returns:
        Names of the files that were written.
    """
    path = source.parent / _GENAI
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        if decoder["filename"] != source.name:
            return ()
        decoder["filename"] = MODEL
        decoder.setdefault("session_options", {})["custom_ops_library"] = "libfairy2i_ops.so"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # no such folder, or one of another kind
    (folder / _GENAI).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    copied = [_GENAI]
    for name in _COPIED:
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, folder / name)
            copied.append(name)
    return tuple(copied)
