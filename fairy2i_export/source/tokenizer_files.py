"""The tokenizer and the other small files of a checkpoint that the exported folder carries along."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint, read_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
COPIED = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "generation_config.json",
    "config.json",
)


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that end or frame a text; None or empty where the checkpoint names none."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def check_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> dict[str, int]:
    """Check that the checkpoint's tokenizer.json fits the model; returns its vocabulary.

    Raises:
        CheckpointError: if it is missing, unreadable, or has tokens that the embedding has no row for.
    """
    path = checkpoint.directory / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; the exported model needs it. Make it from the checkpoint's other tokenizer files with "
            f'transformers: AutoTokenizer.from_pretrained("{checkpoint.directory}").save_pretrained("{checkpoint.directory}")'
        )
    from tokenizers import Tokenizer

    try:
        vocabulary: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error})") from error
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path}: has token ids up to {largest}, but the model's vocabulary (vocab_size in config.json) has "
            f"{vocab_size}; the tokenizer belongs to another model"
        )
    return vocabulary


def special_tokens(checkpoint: Checkpoint, vocabulary: dict[str, int]) -> SpecialTokens:
    """Ids of the special tokens: from generation_config.json, else config.json, else by name from tokenizer_config.json.

    Raises:
        CheckpointError: if an id is no token id.
    """
    tokenizer_config = _optional_json(checkpoint.directory / TOKENIZER_CONFIG)
    sources = [_optional_json(checkpoint.directory / "generation_config.json"), checkpoint.config]

    def find(kind: str) -> tuple[int, ...]:
        for source in sources:
            value = source.get(f"{kind}_token_id")
            if value is not None:
                ids = value if isinstance(value, list) else [value]
                for token in ids:
                    if isinstance(token, bool) or not isinstance(token, int):
                        raise CheckpointError(f"{checkpoint.directory}: {kind}_token_id: expected token ids, got {value!r}")
                # -1 is how some old checkpoints write "none"
                return tuple(token for token in ids if token >= 0)
        name = tokenizer_config.get(f"{kind}_token")
        if isinstance(name, dict):
            name = name.get("content")
        return (vocabulary[name],) if isinstance(name, str) and name in vocabulary else ()

    bos, eos, pad = find("bos"), find("eos"), find("pad")
    return SpecialTokens(bos[0] if bos else None, eos, pad[0] if pad else None)


def copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template and configuration; write a minimal tokenizer_config.json if the checkpoint has none."""
    for name in COPIED:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, folder / name)
    if not (folder / TOKENIZER_CONFIG).exists():
        minimal = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(minimal, indent=2) + "\n", encoding="utf-8")


def has_chat_template(folder: Path) -> bool:
    """Whether a folder holds a chat template, as a file of its own or inside tokenizer_config.json."""
    return (folder / CHAT_TEMPLATE).exists() or "chat_template" in _optional_json(folder / TOKENIZER_CONFIG)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
