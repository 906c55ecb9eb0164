"""The tokenizer and the other small files of a checkpoint that the exported folder carries along."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint, read_json
from fairy2i_export.source.files import TEMPLATES, copy_file
from fairy2i_export.source.text.tokenizer import (
    ADDED_TOKENS,
    SPECIAL_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SourceTokenizer,
    damaged_files,
    open_tokenizer,
)

CHAT_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = TEMPLATES
_PROCESSOR_TEMPLATE = "chat_template.json"
_GENERATION_CONFIG = "generation_config.json"
COPIED = (TOKENIZER_CONFIG, SPECIAL_MAP, ADDED_TOKENS, CHAT_TEMPLATE, _GENERATION_CONFIG, "config.json")


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that end or frame a text; None or empty where the checkpoint names none.

    Attributes:
        bos: begins a text.
        eos: every token that ends one, the most important first.
        pad: fills up a batch.
        warnings: ids that are named and no tokens of the model, a sentence each.
    """

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    warnings: tuple[str, ...] = ()


def check_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> dict[str, int]:
    """Check that the checkpoint's tokenizer fits the model; returns its vocabulary.

    Raises:
        CheckpointError: as :func:`~fairy2i_export.source.text.tokenizer.open_tokenizer`.
    """
    return open_tokenizer(checkpoint.directory, vocab_size).vocabulary


def special_tokens(checkpoint: Checkpoint, tokenizer: SourceTokenizer, vocab_size: int) -> SpecialTokens:
    """Ids of the special tokens from generation_config.json, config.json and, by name, the tokenizer.

    A text ends with the end tokens of all three; for the others the first file that names one counts.

    Raises:
        CheckpointError: generation_config.json is damaged, or there is something else than numbers where ids are expected.
    """
    path = checkpoint.directory / _GENERATION_CONFIG
    sources = {path.name: read_json(path) if path.exists() else {}, "config.json": checkpoint.config}
    warnings: list[str] = []

    def find(kind: str) -> tuple[int, ...]:
        ids: list[int] = []
        for name, source in sources.items():
            value = source.get(f"{kind}_token_id")
            for token in value if isinstance(value, list) else [] if value is None else [value]:
                if not isinstance(token, int | float):
                    where = checkpoint.directory / name
                    raise CheckpointError(f"{where}: {kind}_token_id: expected a token id or a list of them, got {value!r}")
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                    warnings.append(
                        f"{checkpoint.directory / name}: {kind}_token_id: expected token ids from 0 to {vocab_size - 1}, found "
                        f"{token!r}, which is ignored"
                    )
                else:
                    ids.append(token)
        named = tokenizer.backend.token_to_id(tokenizer.special_tokens.get(f"{kind}_token", ""))
        return tuple(dict.fromkeys([*ids, *([] if named is None else [named])]))

    bos, eos, pad = find("bos"), find("eos"), find("pad")
    return SpecialTokens(bos[0] if bos else None, eos, pad[0] if pad else None, tuple(warnings))


def copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write tokenizer, chat templates and configuration; a minimal tokenizer_config.json if the checkpoint has none.

    tokenizer.json is written with all of its tokens, byte for byte as it is if it lacks none.
    """
    directory = checkpoint.directory
    write_tokenizer(directory, folder)
    for name in COPIED:
        if (directory / name).exists() and name not in damaged_files(directory):
            copy_file(directory / name, folder / name)
    copy_templates(directory, folder)
    if not (folder / TOKENIZER_CONFIG).exists():
        minimal = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(minimal, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(directory: Path, folder: Path) -> None:
    """Write the tokenizer.json of a directory into a folder, with all of its tokens.

    Raises:
        CheckpointError: as :func:`~fairy2i_export.source.text.tokenizer.open_tokenizer`.
    """
    text = open_tokenizer(directory).text
    if text is None:
        copy_file(directory / TOKENIZER, folder / TOKENIZER)
    else:
        (folder / TOKENIZER).write_bytes(text.encode())


def copy_templates(directory: Path, folder: Path) -> None:
    """Copy the folder of further chat templates, if there is one."""
    templates = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    if templates:
        (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
    for path in templates:
        copy_file(path, folder / MORE_TEMPLATES / path.name, directory)


def chat_warnings(directory: Path) -> list[str]:
    """Why the chat template of a checkpoint cannot be used, if it has one that cannot."""
    problem = _chat_problem(directory)
    if problem:
        return [f"{problem}. The model generates text, but it does not chat; repair the template and export again"]
    if problem is None and (directory / _PROCESSOR_TEMPLATE).is_file():
        return [
            f"{directory / _PROCESSOR_TEMPLATE}: a chat template in this file belongs to a processor, and transformers' tokenizers "
            f"do not read it: the model does not chat; to use it for text, write it into {CHAT_TEMPLATE} and export again"
        ]
    return []


def has_chat_template(folder: Path) -> bool:
    """Whether a folder holds a chat template that can be used."""
    return _chat_problem(folder) == ""


def _chat_problem(directory: Path) -> str | None:
    """What is wrong with a chat template, empty if nothing is; None if there is none."""
    from fairy2i_runtime.errors import ChatTemplateError, ModelFolderError
    from fairy2i_runtime.text.chat_template import ChatTemplate

    try:
        template = ChatTemplate.load(directory, {})
        if template is None:
            return None
        template.check()
    except ModelFolderError as error:
        raise CheckpointError(str(error)) from error
    except ChatTemplateError as error:
        return str(error)
    return ""
