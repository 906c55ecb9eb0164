"""Texts that a user names: files that are checked before anything works with them, and the tokens that a model makes of them."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fairy2i_export.errors import OptionError

_LOOKED_AT = 1 << 13  # of a file, to see that it is no text
_KINDS = {
    stat.S_ISDIR: "is a folder; name its files",
    stat.S_ISFIFO: "is a pipe, which could be read only once; write it to a file first",
    stat.S_ISCHR: "is a device and no file",
    stat.S_ISBLK: "is a device and no file",
    stat.S_ISSOCK: "is a socket and no file",
}
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def check_file(name: str | PathLike[str], what: str, needed: str) -> Path:
    """Raise OptionError unless a file can be read and is not empty.

    Args:
        name: of the file.
        what: the option that named it, for messages.
        needed: what the file should hold, for messages.
    """
    path = Path(name)
    try:
        mode = path.stat().st_mode
        problem = next((words for is_kind, words in _KINDS.items() if is_kind(mode)), "")
        if not problem:
            with path.open("rb") as file:
                problem = "" if file.read(1) else "is empty: the file holds no text"
    except FileNotFoundError:
        problem = "no such file"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except ValueError as error:  # a name with a NUL character
        problem = f"is no name of a file ({error})"
    if problem:
        raise OptionError(f"{what} {name}: {problem}; expected {needed}")
    return path


def check_text_file(name: str | PathLike[str], what: str, needed: str) -> Path:
    """As :func:`check_file`, and the beginning of the file has to look like text."""
    path = check_file(name, what, needed)
    with path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    if beginning[:2] in _OTHER_ENCODINGS:
        encoding = _OTHER_ENCODINGS[beginning[:2]]
        raise OptionError(f"{what} {name}: begins like {encoding}; expected {needed}: save it as UTF-8")
    if b"\0" in beginning:
        raise OptionError(f"{what} {name}: holds zero bytes, so it is no text; expected {needed}")
    return path


def read_text(name: str | PathLike[str], what: str, needed: str) -> str:
    """All of a UTF-8 text file, with newlines as in Python and without a byte order mark.

    Raises:
        OptionError: if it cannot be read, is no text, or holds nothing but blanks.
    """
    path = check_text_file(name, what, needed)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{what} {name}: expected {needed}; {not_utf8(error)}") from error
    except OSError as error:
        raise OptionError(f"{what} {name}: cannot be read: {error.strerror or error}; expected {needed}") from error
    if not text.strip():
        raise OptionError(f"{what} {name}: the file holds no text, only blanks; expected {needed}")
    return text


def not_utf8(error: UnicodeDecodeError) -> str:
    """What a text that is not UTF-8 has instead, and what to do."""
    return f"found byte {error.object[error.start]:#04x}, which is not UTF-8; convert it (iconv -f ENCODING -t UTF-8)"


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
