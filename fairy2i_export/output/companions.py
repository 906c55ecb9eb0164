"""The other files of an onnxruntime-genai folder, where the source of a rewrite is the decoder of one."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairy2i_export.errors import CheckpointError
from fairy2i_export.output.data_file import MODEL
from fairy2i_export.output.genai_config import GENAI_CONFIG, LIBRARY, write_end_tokens
from fairy2i_export.source.files import check_files, copy_file, read_value
from fairy2i_export.source.text.tokenizer import TOKENIZER
from fairy2i_export.source.text.tokenizer_files import copy_templates, write_tokenizer
from fairy2i_runtime.folder import GENERATION_FILE, LIBRARY_ENTRY

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "config.json",
)  # fmt: skip


def genai_config_of(source: Path) -> dict[str, Any] | None:
    """The genai_config.json beside a model, if the model is the decoder of that folder; its files are looked at then.

    Raises:
        CheckpointError: it is no JSON, or one of the files is no regular file, too large, or a link out of the folder.
    """
    path = source.parent / GENAI_CONFIG
    if not os.path.exists(path):
        return None
    config = read_value(path)
    try:
        if config["model"]["decoder"]["filename"] != source.name:
            return None
        config["model"]["decoder"].setdefault("session_options", {})[LIBRARY_ENTRY] = LIBRARY
    except (KeyError, TypeError, AttributeError):
        return None  # a folder of another kind
    check_files(source.parent)
    config["model"]["decoder"]["filename"] = MODEL
    return dict(config)


def copy_genai_files(source: Path, folder: Path) -> tuple[str, ...]:
    """Where the source is the decoder of an onnxruntime-genai folder, make the result one too.

    As with an export, tokenizer.json has all tokens, and genai_config.json and generation_config.json every token that ends a
    text.

    Returns:
        Names of the files that were written.

    Raises:
        CheckpointError: as :func:`genai_config_of`.
    """
    config = genai_config_of(source)
    if config is None:
        return ()
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    copied = [GENAI_CONFIG]
    for name in COPIED:
        if (source.parent / name).is_file():
            copy_file(source.parent / name, folder / name)
            copied.append(name)
    if TOKENIZER in copied:
        with suppress(CheckpointError):  # not the model's concern: it stays as it is
            write_tokenizer(source.parent, folder)
            _name_end_tokens(folder, config)
            if (folder / GENERATION_FILE).is_file() and GENERATION_FILE not in copied:
                copied.append(GENERATION_FILE)
    copy_templates(source.parent, folder)
    return tuple(copied)


def _name_end_tokens(folder: Path, config: dict[str, Any]) -> None:
    """Let genai_config.json and generation_config.json name all end tokens that the runtime finds."""
    from fairy2i_runtime.errors import Fairy2iRuntimeError, Fairy2iWarning
    from fairy2i_runtime.folder import open_folder
    from fairy2i_runtime.text.tokenizer import Tokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Fairy2iWarning)  # for whoever runs the model
            opened = open_folder(folder)
            eos = Tokenizer.load(folder, opened.vocab_size).eos_id
    except Fairy2iRuntimeError:
        return  # no folder of the runtime
    named = config["model"].get("eos_token_id")
    named = named if isinstance(named, list) else [] if named is None else [named]
    more = sorted((opened.eos_ids if eos is None else opened.eos_ids | {eos}) - set(named))
    write_end_tokens(folder, [token for token in (*named, *more) if token in opened.eos_ids or token == eos])
    if more:
        config["model"]["eos_token_id"] = [*named, *more] if len(named) + len(more) > 1 else more[0]
        (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
