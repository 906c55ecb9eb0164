"""Run a typer application the way the command line tools of this project behave.

A mistake of the user gives one message on stderr and exit code 2; a closed pipe (``| head``) ends quietly; Ctrl-C exits with
130; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from fairy2i_runtime.errors import Fairy2iRuntimeError, Fairy2iWarning

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 1  # as click has it
# typer brings its own copy of click in newer releases and imports click in older ones; this is the base of either
_USAGE_ERROR: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def new_app(help_text: str, group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A typer application with ``-h``, without shell completion, and with plain tracebacks for bugs."""
    return typer.Typer(
        cls=group,
        help=help_text,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_app(
    app: typer.Typer,
    program: str,
    arguments: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (Fairy2iRuntimeError,),
) -> int:
    """Run the application and return the exit code.

    Args:
        app: the application.
        program: the name to call it in messages.
        arguments: default: those of the process.
        errors: exceptions whose message is for the user.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    given = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        _show_warnings_in_one_line(program)
        return _run(app, program, given, errors)


def _show_warnings_in_one_line(program: str) -> None:
    """Until the warnings module's state is restored; only what this project warns of."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, Fairy2iWarning):
            print(f"{program}: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *place)

    warnings.showwarning = show  # type: ignore[assignment]


def _run(app: typer.Typer, program: str, given: list[str], errors: tuple[type[Exception], ...]) -> int:
    try:
        code = app(args=given or ["--help"], prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except _USAGE_ERROR as error:
        return _usage_error(error, program)
    except errors as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes stdout at exit: give it somewhere to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if not given:
        return USER_ERROR
    return code if isinstance(code, int) else 0


def _usage_error(error: Exception, program: str) -> int:
    message = str(getattr(error, "format_message", lambda: error)())
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else program
    print(f"{command}: error: {message} (see {command} --help)", file=sys.stderr)
    return USER_ERROR
