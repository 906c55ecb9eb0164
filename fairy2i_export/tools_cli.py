"""The command ``fairy2i``: the runtime's commands, and ``verify``, which needs the exporter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from fairy2i_export.errors import Fairy2iError
from fairy2i_runtime.cli import add_commands
from fairy2i_runtime.console import new_app, run_app
from fairy2i_runtime.errors import Fairy2iRuntimeError


class _Commands(TyperGroup):
    """Imports ``verify`` when it is called or listed: chatting on a small machine need not wait for the exporter."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), "verify"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name != "verify":
            return super().get_command(ctx, cmd_name)
        from fairy2i_export.verify import verify_command

        single = new_app("")
        single.command("verify")(verify_command)
        return typer.main.get_command(single)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i``; returns the exit code, for the console script to exit with."""
    app = new_app("Tools for Fairy2i models. fairy2i-export makes the model folders.", _Commands)
    add_commands(app)
    return run_app(app, "fairy2i", arguments, errors=(Fairy2iError, Fairy2iRuntimeError))


if __name__ == "__main__":
    sys.exit(main())
