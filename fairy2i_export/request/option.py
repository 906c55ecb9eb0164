"""How an option is declared: a field of a dataclass that carries its help, its choices and who knows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fairy2i_export.codes.choices import one_of
from fairy2i_export.errors import OptionError, check_path
from fairy2i_runtime.errors import encoding_problem

End = Literal["checkpoint", "onnx", "training"]  # front ends: compile a checkpoint, rewrite an ONNX model, train
EVERY: tuple[End, ...] = get_args(End)
_WHAT: dict[End, str] = {"checkpoint": "checkpoints", "onnx": "ONNX models", "training": "training"}
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is known about an option besides its name and type, which are those of its field.

    Attributes:
        help: one or two sentences.
        ends: the front ends that know it.
        choices: values that it may have, for all front ends or by front end; none: whatever its reader accepts.
        fallback: what holds where nobody says anything; None: its reader decides.
        shown: the default as ``--help`` tells it; empty: none is shown.
        metavar: what stands for the value in ``--help``.
        flags: its spellings on the command line; none: ``--NAME``.
        panel: heading in ``--help``.
        words: what messages call it; empty: its name with blanks.
        positive: the value has to be a finite number above 0.
        share: the value has to be a number from 0 to 1.
        neutral: the result does not depend on it.
        former: a name that it had, which is still understood.
    """

    help: str
    ends: tuple[End, ...] = EVERY
    choices: tuple[Any, ...] | Mapping[End, tuple[Any, ...]] = ()
    fallback: Any = None
    shown: str = ""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None
    words: str = ""
    positive: bool = False
    share: bool = False
    neutral: bool = False
    former: str = ""

    def allowed(self, end: End) -> tuple[Any, ...]:
        """The choices of one front end."""
        return tuple(self.choices.get(end, ())) if isinstance(self.choices, Mapping) else self.choices


def option(default: Any, help_text: str, **details: Any) -> Any:
    """A dataclass field that is an option; ``details`` are further attributes of :class:`Option`."""
    return field(default=default, metadata={"option": Option(help_text, **details)})


@cache
def declared(kind: Any, end: End) -> dict[str, Option]:
    """Name -> declaration of every option of a dataclass that a front end knows, in the order of the fields."""
    return {name: found for name, found in _options(kind).items() if end in found.ends}


@cache
def _options(kind: Any) -> dict[str, Option]:
    """Name -> declaration of every option of a dataclass."""
    return {item.name: item.metadata["option"] for item in fields(kind) if "option" in item.metadata}


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """Name -> type of every field."""
    return get_type_hints(kind)


def is_list(kind: Any, name: str) -> bool:
    """Whether an option may be given more than once."""
    kind_of_field = types_of(kind)[name]
    return get_origin(kind_of_field) is tuple and get_args(kind_of_field)[-1] is Ellipsis


def flag_of(name: str, found: Option) -> str:
    """An option as the command line spells it."""
    return found.flags[0] if found.flags else f"--{name.replace('_', '-')}"


def words_of(name: str, found: Option) -> str:
    """An option as messages call it."""
    return found.words or name.replace("_", " ")


def build(kind: Any, end: End, values: Mapping[str, Any], source: str = "") -> Any:
    """The dataclass ``kind`` with the options that were given.

    Args:
        kind: whose fields are options.
        end: the front end that was asked.
        values: by name; None is an option that was not given. A list may be any iterable; a single text is one element.
        source: what was to be worked on, for messages.

    Raises:
        OptionError: an option that nobody or another front end knows.
    """
    known = _options(kind)
    former = {found.former: name for name, found in known.items() if found.former}
    given: dict[str, Any] = {}
    for spelling, value in values.items():
        name = former.get(spelling, spelling)
        if name not in known:
            raise OptionError(f"unknown option {name!r}: expected {', '.join(declared(kind, end))}")
        if is_list(kind, name):
            value = as_tuple(value)
        if value is None or value is False or (isinstance(value, tuple) and not value):
            continue
        if end not in known[name].ends:
            theirs = " and ".join(_WHAT[other] for other in known[name].ends)
            raise OptionError(f"{flag_of(name, known[name])} is for {theirs} only, and {source} is {_A[end]}; leave it out")
        given[name] = _checked(kind, name, words_of(name, known[name]), value)
    return kind(**given)


def _checked(kind: Any, name: str, words: str, value: Any) -> Any:
    """A value of an option if it is of its type; numbers and choices are checked by who knows their limits.

    Raises:
        OptionError: naming the option, what is expected and what was found.
    """
    hint = types_of(kind)[name]
    if is_list(kind, name):
        wanted, items = get_args(hint)[0], value
    else:
        wanted, items = hint, (value,)
    expected: dict[Any, tuple[type | tuple[type, ...], str]] = {
        str: (str, "a text"),
        Path: ((str, PathLike), "a path"),
        bool: (bool, "True or False"),
    }
    wanted = _plain_type(wanted)
    types, what = expected[str] if get_origin(wanted) is Literal else expected.get(wanted, (object, ""))
    for item in items:
        if not isinstance(item, types):
            raise OptionError(f"{words}: expected {what}, got {item!r}")
        if wanted is Path:
            check_path(words, item)
        elif isinstance(item, str) and (problem := encoding_problem(item)):
            raise OptionError(f"{words} {problem}; give another one")
    if not isinstance(value, bool) and isinstance(value, Integral):
        return int(value)  # numpy's, too
    return value


def check_types(values: Any, end: End) -> None:
    """Check that every option of a dataclass that somebody made by hand is of its type.

    Raises:
        OptionError: naming the option as the command line spells it, what is expected and what was found.
    """
    kind: Any = type(values)
    defaults = {item.name: item.default for item in fields(kind)}
    for name, found in declared(kind, end).items():
        value, flag = getattr(values, name), flag_of(name, found).partition("/")[0]
        wanted = _plain_type(types_of(kind)[name])
        if value is None and defaults[name] is None:
            continue
        number = isinstance(value, Real) and not isinstance(value, bool)
        if wanted is int and not (number and isinstance(value, Integral)):
            raise OptionError(f"{flag}: expected a whole number, got {value!r}")
        if wanted is float and not number:
            raise OptionError(f"{flag}: expected a number, got {value!r}")
        if is_list(kind, name) and not isinstance(value, tuple):
            raise OptionError(f"{flag}: expected a list, got {value!r}")
        _checked(kind, name, flag, value)


def _plain_type(hint: Any) -> Any:
    """A type without the None that may stand instead."""
    inner = [choice for choice in get_args(hint) if choice is not type(None)]
    return inner[0] if type(None) in get_args(hint) and len(inner) == 1 else hint


_A: dict[End, str] = {"checkpoint": "a checkpoint", "onnx": "an ONNX model", "training": "a source of training"}


def as_tuple(value: Any) -> tuple[Any, ...]:
    """What was given for a list: a single text or path is one element."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return (value,)
    return tuple(value)


def check_choices(values: Any, end: End) -> None:
    """Check every option of a dataclass that has choices; None is not checked.

    Raises:
        OptionError: naming the option, what is allowed and what was found.
    """
    kind: Any = type(values)
    for name, found in declared(kind, end).items():
        value, allowed = getattr(values, name), found.allowed(end)
        if allowed and value is not None:
            for one in value if is_list(kind, name) else (value,):
                one_of(words_of(name, found), one, allowed)


def takes(kind: Any, end: End) -> Callable[[F], F]:
    """Let a function that takes ``**options`` show in its signature and docstring which ones there are."""

    def mark(function: F) -> F:
        options = declared(kind, end)
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        defaults = {item.name: item.default for item in fields(kind)}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=types_of(kind)[name])
            for name in options
        ]
        function.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
        lines = [
            f"    {name}: {found.help}{f' Default: {found.shown}.' if found.shown else ''}"
            for name, found in options.items()
        ]
        function.__doc__ = inspect.cleandoc(function.__doc__ or "") + "\n\nOptions:\n" + "\n".join(lines)
        return function

    return mark
