"""Errors the runtime raises on purpose.

Every message states what was expected, what was found, where, and what to do. The command line prints the message alone
and exits with code 2; anything that is not a :class:`UserError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class UserError(Exception):
    """Base class of every error a user can cause and repair, of this package and of those that add commands to its program."""


class Fairy2iRuntimeError(UserError):
    """Base class of every such error of the runtime."""


class LibraryError(Fairy2iRuntimeError):
    """A library is missing or too old: the operator library, or of the wrong architecture; onnxruntime, onnxruntime-genai."""


class ModelFolderError(Fairy2iRuntimeError):
    """The model folder is missing, incomplete, damaged, or of a kind that is not read."""


class OptionError(Fairy2iRuntimeError):
    """An option has an unknown or impossible value."""


class ContextError(Fairy2iRuntimeError):
    """A prompt or a conversation does not fit into the context."""


class RunError(Fairy2iRuntimeError):
    """onnxruntime gave up in the middle of a run, for instance because memory was short."""


class OutOfMemoryError(RunError):
    """There is not enough memory to load a model or to run it."""


class ChatTemplateError(Fairy2iRuntimeError):
    """The chat template is invalid or refuses the conversation."""


class Fairy2iWarning(UserWarning):
    """Something that works and is probably not what was meant. The commands print it in one line; once for each place."""


def check_option(name: str, value: Any, kind: type, in_range: Callable[[Any], bool], expected: str) -> None:
    """Raise an :class:`OptionError` unless ``value`` is of the numeric ``kind`` and in range."""
    if not isinstance(value, kind) or isinstance(value, bool) or not in_range(value):
        raise OptionError(f"{name}: expected {expected}, got {value!r}")


def check_text(name: str, value: Any) -> str:
    """The text ``value``; an :class:`OptionError` unless it is a ``str`` that can be written as UTF-8."""
    if not isinstance(value, str):
        hint = ": decode it first" if isinstance(value, bytes | bytearray) else ""
        raise OptionError(f"{name}: expected a text (str), got {_described(value)}{hint}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        # Python decodes the bytes of arguments and files that are not UTF-8 to these
        found = (
            f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a character (surrogate U+{code:04X})"
        )
        raise OptionError(
            f"{name}: expected text in UTF-8, found {found} at position {error.start}: convert it to UTF-8"
        ) from None
    return value


def check_path(name: str, value: Any, error: type[Exception] = OptionError) -> str:
    """The path ``value`` as text; an ``error`` unless it is a ``str`` or path that a file can have and UTF-8 can express."""
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise error(f"{name}: expected the path of a folder or file, got {_described(value)}")
    if not path:
        raise error(f"{name}: expected the path of a folder or file, got an empty text (a shell variable that is not set?)")
    if "\0" in path:
        raise error(f"{name}: expected the path of a folder or file, got {path!r}: no name holds the character NUL")
    if problem := encoding_problem(path):
        raise error(f"{name} {problem}; rename the file, or give another name")
    return path


def encoding_problem(text: str) -> str:
    """What UTF-8 cannot express in a text that came as bytes from the system; empty if there is nothing of that kind.

    Python decodes those bytes to lone surrogates, which no file format that is written here can hold, nor a library take.
    """
    if text.isascii():
        return ""
    encoding = sys.getfilesystemencoding()
    try:
        text.encode("utf-8")
        return ""
    except UnicodeEncodeError:
        try:
            raw = text.encode(encoding, "surrogateescape")
        except UnicodeEncodeError:  # half characters that no system gave
            return f"{text!r}: is no UTF-8"
    shown = raw.decode("utf-8", "backslashreplace")
    if shown.encode("utf-8") == raw:  # a locale that does not know the characters
        return f"'{shown}': expected text in the locale's encoding, {encoding} (try LC_ALL=C.UTF-8)"
    return f"'{shown}': is no UTF-8"


def printable(text: str, most: int = 500) -> str:
    """A text that a file or a model controls, to be part of one line: control and other invisible characters are escaped.

    Args:
        text: any text.
        most: characters to show; the middle of a longer text is left out.
    """
    if len(text) > most:
        text = f"{text[: most * 3 // 4]} ... {text[-most // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def without_controls(text: str) -> str:
    """A text for a terminal: control characters, which a terminal would obey, are escaped; line breaks and tabs stay."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _described(value: Any) -> str:
    """A value in an error message: short, and with its type."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
