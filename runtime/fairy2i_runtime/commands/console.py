"""Run a typer application the way the command line tools of this project behave.

A mistake of the user gives one message on stderr and exit code 2; a closed pipe (``| head``) ends quietly; Ctrl-C and other
signals that end a program give one line about what is kept and 128 + their number; everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from fairy2i_runtime.commands.given_text import check_given
from fairy2i_runtime.commands.process.startup import USER_ERROR, Terminated, interrupted, say
from fairy2i_runtime.commands.process.streams import check_output, note_done
from fairy2i_runtime.errors import Fairy2iWarning, UserError, without_controls
from fairy2i_runtime.version import __version__

BROKEN_PIPE = 1  # as click has it
NO_MEMORY = "there is not enough memory; end other programs, or raise the limit (ulimit -v, a container's)"
_NO_MEMORY_TO_IMPORT = re.compile("bad_alloc|failed to map segment|cannot allocate memory", re.I)
# typer brings its own copy of click in newer releases and imports click in older ones; this is the base of either
_USAGE_ERROR: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def print_version(context: typer.Context, wanted: bool) -> None:
    """What the option ``--version`` does."""
    if wanted:
        print(f"{context.find_root().info_name} {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")]


def _program(version: Version = False) -> None:
    """Take the options of a program with several commands."""


class _Command(TyperCommand):
    """A command whose arguments are looked at before it does anything."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # of a shell that completes a line
            values, others, _ = self.make_parser(ctx).parse_args(args=given)
            paths = {name for name, value in ctx.params.items() if _is_path(value)}
            check_given(self.params, values, paths, others)
        return rest


def _is_path(value: Any) -> bool:
    return any(isinstance(item, Path) for item in (value if isinstance(value, list | tuple) else [value]))


class _App(typer.Typer):
    """An application of such commands."""

    def command(self, name: str | None = None, **details: Any) -> Any:
        return super().command(name, **{"cls": _Command, **details})


def new_app(help_text: str, group: type[TyperGroup] = TyperGroup, *, completion: bool = True) -> typer.Typer:
    """A typer application with ``-h`` and plain tracebacks for bugs.

    Args:
        help_text: of the program.
        group: of its commands.
        completion: whether it is the program itself, with options for the completion of a shell, and not a command of one.
    """
    return _App(
        cls=group,
        help=help_text,
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def new_tools(help_text: str, group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """The application of a program with several commands, and ``--version``."""
    app = new_app(help_text, group)
    app.callback()(_program)
    return app


def run_app(
    app: typer.Typer,
    program: str,
    arguments: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Run the application and return the exit code.

    Args:
        app: the application.
        program: the name to call it in messages.
        arguments: default: those of the process.
        errors: exceptions whose message is for the user, beside :class:`UserError`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isascii() and columns.isdigit() and 0 < int(columns) < 100_000):
        os.environ.pop("COLUMNS", None)  # unknown, as for other programs: rich would make tables of no width
    given = list(sys.argv[1:] if arguments is None else arguments)
    note_done("")
    with warnings.catch_warnings():
        _show_warnings_in_one_line(program)
        return _run(app, program, given, (UserError, *errors))


def _show_warnings_in_one_line(program: str) -> None:
    """Until the warnings module's state is restored; only what this project warns of."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, Fairy2iWarning):
            say(f"{program}: warning: {without_controls(str(message))}")
        else:
            usual(message, category, *place)

    warnings.showwarning = show  # type: ignore[assignment]


def _run(app: typer.Typer, program: str, given: list[str], known: tuple[type[Exception], ...]) -> int:
    try:
        code = _call(app, program, list(given or ["--help"]))
        check_output()
    except _USAGE_ERROR as error:
        return _usage_error(error, program)
    except known as error:
        say(f"{program}: error: {without_controls(str(error))}")
        return USER_ERROR
    except MemoryError as error:
        say(f"{program}: error: {NO_MEMORY}{f' ({error})' if str(error) else ''}")
        return USER_ERROR
    except ImportError as error:
        problem = _import_problem(error)
        if not problem:
            raise
        say(f"{program}: error: {problem}")
        return USER_ERROR
    except (KeyboardInterrupt, Terminated, typer.Abort) as stop:
        return interrupted(stop)
    except BrokenPipeError:
        return BROKEN_PIPE
    if not given:
        return USER_ERROR
    return code if isinstance(code, int) else 0


def _import_problem(error: ImportError) -> str:
    """What to say of a package that is there and cannot be imported; empty if that is a bug."""
    if _NO_MEMORY_TO_IMPORT.search(str(error)):
        return f"{NO_MEMORY} ({error})"
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "onnxruntime":
            said = str(error) or "it does not say why"
            return f"onnxruntime cannot be imported: {said}; install it again: pip install --upgrade --force-reinstall onnxruntime"
        place = place.tb_next
    return ""


def _call(app: typer.Typer, program: str, given: list[str]) -> Any:
    """What the application's ``main`` does, but that of typer hides a Ctrl-C."""
    command: Any = typer.main.get_command(app)
    if f"_{program.replace('-', '_').upper()}_COMPLETE" in os.environ:  # asked by a shell
        return command.main(args=given, prog_name=program, standalone_mode=False)
    try:
        with command.make_context(program, given) as context:
            return command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:  # of the options that typer adds; what they printed is still to be checked
        if isinstance(end, Terminated):
            raise
        return end.code


def _usage_error(error: Exception, program: str) -> int:
    message = str(getattr(error, "format_message", lambda: error)())
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else program
    say(f"{command}: error: {message} (see {command} --help)")
    return USER_ERROR
