"""Text that people give to a command: arguments, standard input, lines they type.

Python keeps bytes that the encoding of the locale does not know as lone surrogates. If they are UTF-8 (a terminal that speaks
it in a session with ``LC_ALL=C``, say), the text is what was meant. If not, a command says so, or shows them as U+FFFD.
"""

from __future__ import annotations

import re
import sys

from fairy2i_runtime.errors import OptionError, check_text

_SURROGATE = re.compile("[\ud800-\udfff]")


def argument(name: str, text: str) -> str:
    """An argument or the value of an option.

    Raises:
        OptionError: if it is neither in the encoding of the locale nor in UTF-8.
    """
    return check_text(name, _meant(text, sys.getfilesystemencoding()))


def standard_input() -> str:
    """All of standard input.

    Raises:
        OptionError: if it is closed, or neither in the encoding of the locale nor in UTF-8.
    """
    if sys.stdin is None:
        raise OptionError("standard input: expected a text, but it is closed: give the prompt as an argument")
    keep_undecodable_bytes()
    return check_text("standard input", _meant(sys.stdin.read(), sys.stdin.encoding))


def keep_undecodable_bytes() -> None:
    """Standard input does not fail, and loses nothing, at bytes that its encoding does not know."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")


def typed_line(line: str) -> str:
    """A line of standard input; what is no text in it becomes U+FFFD. See :func:`keep_undecodable_bytes`."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _meant(line, getattr(sys.stdin, "encoding", None)))


def _meant(text: str, encoding: str | None) -> str:
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode(encoding or "utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text
