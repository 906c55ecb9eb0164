"""Texts that a user names: files that are checked before anything works with them, and the tokens that a model makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fairy2i_export.errors import OptionError
from fairy2i_runtime.measure import textfile


def check_file(name: str | PathLike[str], what: str, needed: str) -> Path:
    """Raise OptionError unless a file can be read and is not empty.

    Args:
        name: of the file.
        what: the option that named it, for messages.
        needed: what the file should hold, for messages.
    """
    return _checked(textfile.check_file, name, what, needed)


def check_text_file(name: str | PathLike[str], what: str, needed: str) -> Path:
    """As :func:`check_file`, and the beginning of the file has to look like text."""
    return _checked(textfile.check_text_file, name, what, needed)


def _checked(check: Callable[[Path], None], name: str | PathLike[str], what: str, needed: str) -> Path:
    path = Path(name)
    try:
        check(path)
    except textfile.TextFileError as error:
        raise OptionError(f"{what} {name}: {error}; expected {needed}") from error
    return path


def read_text(name: str | PathLike[str], what: str, needed: str) -> str:
    """All of a UTF-8 text file, with newlines as in Python and without a byte order mark.

    Raises:
        OptionError: if it cannot be read, is no text, or holds nothing but blanks.
    """
    try:
        text = textfile.read_text_file(Path(name))
    except textfile.TextFileError as error:
        raise OptionError(f"{what} {name}: {error}; expected {needed}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unknown_token(tokenizer: Any) -> int | None:
    """The id that stands for what a tokenizer has no token for; None if it has no such token."""
    token = getattr(tokenizer.model, "unk_token", None)
    if token is not None:
        found: int | None = tokenizer.token_to_id(token)
        return found
    if type(tokenizer.model).__name__ != "Unigram":
        return None
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return unknown if isinstance(unknown, int) else None


def unknown_warnings(tokenizer: Any, ids: Sequence[int], where: str) -> list[str]:
    """A warning if most of a text is unknown to the tokenizer: what is measured with it says little about the model.

    Args:
        tokenizer: of the ``tokenizers`` library.
        ids: tokens of the text.
        where: the text, for the message.
    """
    unknown = unknown_token(tokenizer)
    count = 0 if unknown is None else sum(token == unknown for token in ids)
    if 2 * count <= len(ids):
        return []
    share = "all" if count == len(ids) else f"{count / len(ids):.0%}"
    return [
        f"{where}: {share} of its {len(ids):,} tokens are {tokenizer.id_to_token(unknown)!r}, what the tokenizer makes of words "
        "that it does not know; give text of the kind that the model is for, or the tokenizer of this model"
    ]
