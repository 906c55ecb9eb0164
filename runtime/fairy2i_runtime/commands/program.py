"""The program ``fairy2i``: the commands of the runtime, and those that other installed packages add.

A package adds commands by an entry point of the group ``fairy2i.commands`` that names a table like :data:`COMMANDS`; a name
that both have is the other package's. That is how fairy2i-export brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from fairy2i_runtime.commands.console import new_app, new_tools, run_app
from fairy2i_runtime.commands.process.startup import USER_ERROR, say
from fairy2i_runtime.errors import LibraryError

GROUP = "fairy2i.commands"
# command -> module and function, imported when the command is called or listed
COMMANDS = {
    "chat": "fairy2i_runtime.commands.chat:chat",
    "generate": "fairy2i_runtime.commands.generate:generate",
    "serve": "fairy2i_runtime.commands.serve:serve",
    "info": "fairy2i_runtime.commands.info:info",
    "ppl": "fairy2i_runtime.commands.measure:ppl",
    "bench": "fairy2i_runtime.commands.measure:bench_command",
    "tune": "fairy2i_runtime.commands.measure:tune_command",
}
# arguments for another program: typer shall leave all of them alone
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
_ALONE = (
    "More commands, which make and check model folders, come with fairy2i-export (pip install . in a checkout of its repository); "
    "it is not installed here."
)


def passes_arguments_on(command: Callable[..., None]) -> Callable[..., None]:
    """Mark a command whose arguments, ``--help`` too, are those of another program; it finds them in its ``typer.Context``."""
    command.passes_arguments_on = True  # type: ignore[attr-defined]
    return command


def added_commands() -> dict[str, str]:
    """The commands of other installed packages: name -> ``module:function``.

    Raises:
        LibraryError: a package's table cannot be imported.
    """
    found: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        try:
            found.update(entry.load())
        except ImportError as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise LibraryError(
                f"the commands of {package} cannot be imported: {error}; install it again, or remove it"
            ) from error
    return found


class _Commands(TyperGroup):
    """Imports a command when it is called or listed: chatting on a small machine need not wait for all others."""

    table: Mapping[str, str] = {}
    is_alone = False  # nobody adds commands

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table:
            meant = get_close_matches(cmd_name, self.table, 1)
            if (meant or self.is_alone) and not ctx.resilient_parsing:  # of a shell that completes a line
                ctx.fail(f"No such command {cmd_name!r}. " + (f"Did you mean {meant[0]!r}?" if meant else _ALONE))
            return None
        module, _, name = self.table[cmd_name].partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        single = new_app("", completion=False)
        settings = _PASSED_ON if getattr(function, "passes_arguments_on", False) else None
        single.command(cmd_name, context_settings=settings)(function)
        return typer.main.get_command(single)


def run(arguments: Sequence[str] | None = None, added: Mapping[str, str] | None = None) -> int:
    """Run ``fairy2i``; returns the exit code.

    Args:
        arguments: default: those of the process.
        added: commands of other packages; default: of those that are installed.
    """
    try:
        others = added_commands() if added is None else added
    except LibraryError as error:
        say(f"fairy2i: error: {error}")
        return USER_ERROR

    class Commands(_Commands):
        table: Mapping[str, str] = {**COMMANDS, **others}
        is_alone = not others

    about = "Tools for Fairy2i models."
    return run_app(new_tools(about if others else f"{about} {_ALONE}", Commands), "fairy2i", arguments)
