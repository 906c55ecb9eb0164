"""The other files of an onnxruntime-genai folder, where the source of a rewrite is the decoder of one."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from fairy2i_export.errors import CheckpointError
from fairy2i_export.output.data_file import MODEL
from fairy2i_export.output.genai_config import GENAI_CONFIG, LIBRARY
from fairy2i_export.source.tokenizer import TOKENIZER
from fairy2i_export.source.tokenizer_files import copy_templates, write_tokenizer

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "config.json",
)  # fmt: skip


def copy_genai_files(source: Path, folder: Path) -> tuple[str, ...]:
    """Where the source is the decoder of an onnxruntime-genai folder, make the result one too.

    Returns:
        Names of the files that were written.
    """
    path = source.parent / GENAI_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        decoder = config["model"]["decoder"]
        if decoder["filename"] != source.name:
            return ()
        decoder["filename"] = MODEL
        decoder.setdefault("session_options", {})["custom_ops_library"] = LIBRARY
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # no such folder, or one of another kind
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    copied = [GENAI_CONFIG]
    for name in COPIED:
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, folder / name)
            copied.append(name)
    if TOKENIZER in copied:
        with suppress(CheckpointError):  # not the model's concern: it stays as it is
            write_tokenizer(source.parent, folder)
    copy_templates(source.parent, folder)
    return tuple(copied)
