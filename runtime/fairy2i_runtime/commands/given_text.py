"""Text that people give to a command: arguments, standard input, lines they type.

Python keeps bytes that the encoding of the locale does not know as lone surrogates. If they are UTF-8 (a terminal that speaks
it in a session with ``LC_ALL=C``, say), the text is what was meant. If not, a command says so, or shows them as U+FFFD.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from fairy2i_runtime.errors import OptionError, check_path, check_text, encoding_problem

_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXTS = {"prompt", "stop", "system", "template_variable"}  # parameters that commands read with argument()
_PLACES = re.compile(r"\b(SOURCE|DIR|FILE)\b")  # what stands in --help for the name of a file or folder


def check_given(parameters: Iterable[Any], values: Mapping[str, Any], paths: set[str], rest: Iterable[str]) -> None:
    """Refuse what a command cannot use, before it does anything: names that are empty or no UTF-8.

    Args:
        parameters: of the command, as typer knows them.
        values: what was given for them, as it was given; those of texts are left to :func:`argument`.
        paths: names of parameters whose values are paths.
        rest: arguments for another program.

    Raises:
        OptionError: naming the parameter.
    """
    for parameter in parameters:
        given = values.get(parameter.name)
        name = parameter.metavar or parameter.name
        if parameter.param_type_name == "option":
            name = max(parameter.opts, key=len)
        place = parameter.name in paths or _PLACES.search(parameter.metavar or "")
        for value in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(value, str) or parameter.name in _TEXTS:
                continue
            if place:
                check_path(name.strip("[]"), value)
            elif problem := encoding_problem(value):
                raise OptionError(f"{name} {problem}; give another one")
    for value in rest:
        if problem := encoding_problem(value):
            raise OptionError(f"argument {problem}; give another one")


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
