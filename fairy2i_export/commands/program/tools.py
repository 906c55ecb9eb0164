"""The command ``fairy2i``: the runtime's commands, and those that need the exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from fairy2i_export.errors import Fairy2iError
from fairy2i_runtime.commands.console import new_app, new_tools, run_app
from fairy2i_runtime.errors import Fairy2iRuntimeError

# command -> module and function, imported when the command is called or listed
_COMMANDS = {
    "chat": "fairy2i_runtime.commands.main:chat",
    "generate": "fairy2i_runtime.commands.main:generate",
    "info": "fairy2i_runtime.commands.main:info",
    "ppl": "fairy2i_export.commands.ppl:ppl_command",  # with --against, which that of the runtime has not
    "bench": "fairy2i_runtime.commands.measure:bench_command",
    "verify": "fairy2i_export.commands.verify:verify_command",
    "inspect": "fairy2i_export.commands.inspect:inspect_command",
    "report": "fairy2i_export.commands.report:report_command",
    "tokenizer-onnx": "fairy2i_export.commands.tokenizer_onnx:tokenizer_onnx_command",
    "train": "fairy2i_export.commands.train:train_command",
    "lm-eval": "fairy2i_export.commands.lm_eval:lm_eval_command",
}
# arguments for another program: typer shall leave all of them alone
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class _Commands(TyperGroup):
    """Imports a command when it is called or listed: chatting on a small machine need not wait for the exporter."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        single = new_app("", completion=False)
        single.command(cmd_name, context_settings=_PASSED_ON if cmd_name == "lm-eval" else None)(function)
        return typer.main.get_command(single)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i``; returns the exit code."""
    app = new_tools("Tools for Fairy2i models. fairy2i-export makes the model folders.", _Commands)
    return run_app(app, "fairy2i", arguments, errors=(Fairy2iError, Fairy2iRuntimeError))
