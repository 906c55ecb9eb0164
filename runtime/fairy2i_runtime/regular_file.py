"""Open a file that somebody else may have put there: a regular file of a size that was agreed on, or an error, at once.

A pipe is waited for without end, a device gives bytes without end, and so does a file with a hole of some terabytes. Every
file of a model folder or a checkpoint is opened here, so that none of them can stall a program or take its memory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

JSON_BYTES = 1 << 24  # of a configuration: a thousand times the usual; parsed, it takes up to 25 times as much
TOKENIZER_BYTES = 1 << 27  # of tokenizer.json or an index of shards; the largest known ones have 34 MB
JSON_DEPTH = 64  # levels of objects and lists: configurations have about five
_CHUNK = 1 << 16
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


class UnusableFileError(OSError):
    """A file that is not opened: no regular one, or too large. ``strerror`` is worded to follow its name and a colon."""


class NestingError(ValueError):
    """JSON whose objects and lists lie deeper in each other than anything that is meant to be read."""


def open_regular(path: Path, limit: int, what: str) -> BinaryIO:
    """Open a regular file, or a link to one, for reading. Never waits.

    Args:
        path: the file.
        limit: bytes that it may have at most. It may grow later: read no more than this.
        what: what it should be, for the message, such as ``a configuration``.

    Raises:
        UnusableFileError: if it is no regular file or has more bytes.
        OSError: if there is none, it cannot be read, or no file can have such a name.
    """
    try:
        _check(os.stat(path), path, limit, what)  # before it is opened: opening a device may already do something
        # in C: the file has its descriptor at once, so that an exception of a signal anywhere here finds one owner of it
        file = open(path, "rb", opener=_open)  # noqa: SIM115
    except ValueError as error:  # a name with a NUL character, or one that the system's encoding lacks
        raise UnusableFileError(errno.EINVAL, f"no name of a file ({error})", ascii(str(path))) from None
    try:
        _check(os.fstat(file.fileno()), path, limit, what)  # it may have been replaced in between
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """All of a regular file of at most ``limit`` bytes; errors as :func:`open_regular`."""
    with open_regular(path, limit, what) as file:
        return read_opened(file, limit, what)


def read_opened(file: BinaryIO, limit: int, what: str) -> bytes:
    """What is left of a file that :func:`open_regular` opened; raises UnusableFileError beyond ``limit`` bytes."""
    data = file.read(os.fstat(file.fileno()).st_size)  # what it says, not the limit: memory for that is taken at once
    while len(data) <= limit and (more := file.read(min(_CHUNK, limit + 1 - len(data)))):
        data += more
    if len(data) > limit:  # it grew, or is one of the system's, which do not tell their size
        raise UnusableFileError(errno.EFBIG, f"expected {what} of at most {limit:,} bytes, found more")
    return data


def read_json_value(path: Path, what: str = "a configuration", limit: int = JSON_BYTES) -> Any:
    """The JSON value in a regular file.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: if it is no JSON in UTF-8.
        NestingError: if it is nested too deeply.
    """
    return parse_json(read_regular(path, limit, what))


def parse_json(data: bytes | str) -> Any:
    """The JSON value in a text of UTF-8; errors as :func:`read_json_value`."""
    deep = f"objects and lists are nested too deeply, in more than {JSON_DEPTH} levels"
    try:
        value = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
    except RecursionError:
        raise NestingError(deep) from None
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        depth += 1
        if depth > JSON_DEPTH:
            raise NestingError(deep)
        members = (item for found in level for item in (found.values() if isinstance(found, dict) else found))
        level = [item for item in members if isinstance(item, dict | list)]
    return value


def _open(path: str, flags: int) -> int:
    return os.open(path, _FLAGS)


def _check(status: os.stat_result, path: Path, limit: int, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(status.st_mode)), "something else")
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise UnusableFileError(code, f"expected {what} in a regular file, found {kind}", str(path))
    if status.st_size > limit:
        text = f"expected {what} of at most {limit:,} bytes, found {status.st_size:,} bytes"
        raise UnusableFileError(errno.EFBIG, text, str(path))
