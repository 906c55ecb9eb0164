"""The command ``fairy2i lm-eval``: lm_eval's own command line, with the model ``fairy2i`` known to it.

Outside the package check.lm_eval, whose import needs lm_eval, so that the command can say what is missing.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys

import typer

from fairy2i_export.errors import OptionError, install_hint
from fairy2i_runtime.commands.program import passes_arguments_on


@passes_arguments_on
def lm_eval_command(context: typer.Context) -> None:
    """Run zero-shot and few-shot tasks with lm_eval: --model fairy2i --model_args path=DIR --tasks NAME.

    All arguments are lm_eval's. --model_args takes path, and optionally threads, kernel, isa, max_length, max_gen_toks,
    enable_thinking and chat_template_args (variables for the chat template, as of lm_eval's own models).
    """
    needed = f"lm-eval needs the package lm_eval: {install_hint('eval')}"
    if not _is_installed():
        if not context.args or {"-h", "--help"} & set(context.args):
            about = inspect.getdoc(lm_eval_command)
            print(f"{context.command_path}: {about}\n\nIts options are listed here once it is installed: {needed}")
            return
        raise OptionError(needed)
    from lm_eval.__main__ import cli_evaluate

    import fairy2i_export.check.lm_eval  # noqa: F401 - registers the model

    before = sys.argv
    sys.argv = ["lm-eval", *(context.args or ["--help"])]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("lm_eval") is not None
    except ValueError:  # a module without a specification stands in its place
        return False
