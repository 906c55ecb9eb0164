"""Options of the command line that are made of declarations (request/option.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from fairy2i_export.request.option import End, Option, declared, flag_of, is_list, types_of


def with_options(kind: Any, end: End) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command for typer the options of a dataclass, beside its own parameters.

    The command takes ``**options``, which it gets by name.

    Args:
        kind: the dataclass.
        end: the front end: of the options, only those that it knows are taken.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [
            *own,
            *(_parameter(kind, name, found) for name, found in declared(kind, end).items()),
        ]

        @wraps(command)
        def run(**values: Any) -> None:
            command(**values)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(kind: Any, name: str, found: Option) -> inspect.Parameter:
    default = next(item.default for item in fields(kind) if item.name == name)
    value = types_of(kind)[name]
    if is_list(kind, name):
        value, default = list[_plain(get_args(value)[0])] | None, None  # type: ignore[misc]
    elif default is None:
        value = _plain(value) | None
    else:
        value = _plain(value)
    flags = found.flags or ((flag_of(name, found),) if value is bool else ())
    details = typer.Option(
        *flags,
        help=found.help,
        metavar=found.metavar,
        show_default=found.shown or (default not in (None, False)),
        rich_help_panel=found.panel,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[value, details])


def _plain(kind: Any) -> Any:
    """The type that typer reads a value as: words of a choice are text, checked where all front ends check them."""
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices):
        return str
    inner = [choice for choice in choices if choice is not type(None)]
    return _plain(inner[0]) if type(None) in choices and len(inner) == 1 else kind
