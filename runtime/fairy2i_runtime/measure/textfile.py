"""Text files that a user names: looked at before they are read, so that a pipe, a device or a picture is one clear message."""

from __future__ import annotations

import stat
from pathlib import Path

_LOOKED_AT = 1 << 13  # bytes of a file, to see early that it is no text
_KINDS = {
    stat.S_ISDIR: "is a folder; name its files",
    stat.S_ISFIFO: "is a pipe, which could be read only once; write it to a file first",
    stat.S_ISCHR: "is a device and no file",
    stat.S_ISBLK: "is a device and no file",
    stat.S_ISSOCK: "is a socket and no file",
}
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ZERO_BYTES = "holds zero bytes, so it is no text in UTF-8"


class TextFileError(Exception):
    """What is wrong with a file, worded to follow its name."""


def check_file(path: Path) -> None:
    """Raise TextFileError unless a file can be read and is not empty."""
    try:
        mode = path.stat().st_mode
        for is_kind, words in _KINDS.items():
            if is_kind(mode):
                raise TextFileError(words)
        with path.open("rb") as file:
            if not file.read(1):
                raise TextFileError("is empty: the file holds no text")
    except FileNotFoundError as error:
        raise TextFileError("no such file") from error
    except OSError as error:
        raise TextFileError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name with a NUL character, or one that is no UTF-8
        raise TextFileError(f"is no name of a file ({error})") from error


def check_text_file(path: Path) -> None:
    """As :func:`check_file`, and the beginning of the file has to look like text."""
    check_file(path)
    with path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    if beginning[:2] in _OTHER_ENCODINGS:
        raise TextFileError(f"begins like {_OTHER_ENCODINGS[beginning[:2]]}; save it as UTF-8")
    if b"\0" in beginning:
        raise TextFileError(_ZERO_BYTES)


def read_text_file(path: Path) -> str:
    """All of a UTF-8 text file, newlines as they are, without a byte order mark.

    Raises:
        TextFileError: if it cannot be read, is no text, or holds nothing but blanks.
    """
    check_text_file(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextFileError(not_utf8(error)) from error
    except OSError as error:
        raise TextFileError(f"cannot be read: {error.strerror or error}") from error
    if "\0" in text:
        raise TextFileError(_ZERO_BYTES)
    if not text.strip():
        raise TextFileError("the file holds no text, only blanks")
    return text


def not_utf8(error: UnicodeDecodeError) -> str:
    """What a text that is not UTF-8 has instead, and what to do."""
    return f"found byte {error.object[error.start]:#04x}, which is not UTF-8; convert it (iconv -f ENCODING -t UTF-8)"
