"""The commands ``fairy2i chat``, ``fairy2i generate`` and ``fairy2i info``; ``cli_measure`` has ``ppl`` and ``bench``.

What runs a model is imported when a command runs: --help needs none of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy2i_runtime.commands import given_text
from fairy2i_runtime.commands import measure as cli_measure
from fairy2i_runtime.commands.chat import chat
from fairy2i_runtime.commands.console import new_tools, run_app
from fairy2i_runtime.commands.options import (
    Context,
    Folder,
    Isa,
    Kernel,
    Penalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)


def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")] = False,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    context_length: Context = None,
    stream: Annotated[bool, typer.Option(help="Print the text as it is generated, or at the end.")] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second to standard error.")] = False,
) -> None:
    """Continue a text and print what is new."""
    from fairy2i_runtime.commands.interrupts import heeding_ctrl_c, printing_text
    from fairy2i_runtime.model import load
    from fairy2i_runtime.text.options import GenerationOptions

    options = GenerationOptions(
        temperature,
        top_k,
        top_p,
        repetition_penalty,
        seed,
        max_new_tokens,
        [given_text.argument("--stop", text) for text in stop or ()],
        ignore_eos,
    )
    text = given_text.standard_input() if prompt == "-" else given_text.argument("PROMPT", prompt)
    model = load(folder, threads=threads, kernel=kernel, isa=isa, context_length=context_length)
    pieces = model.stream(text, **vars(options))
    with printing_text():
        with heeding_ctrl_c(pieces.cancel):
            result = pieces.run(_print_piece if stream else None)
        print("" if stream else result.text)
        if stats:
            print(f"{result.timings}; ended by: {result.finish_reason}", file=sys.stderr)


def info(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Model folder.", show_default=False)] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Context to estimate the memory for.", show_default="the model's own")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the operator library, its kernels and the processor; with DIR also the model and the memory it needs."""
    from fairy2i_runtime.measure.info import installation_info, installation_text, model_info, model_text

    report: dict[str, Any] = {"installation": installation_info()}
    if folder is not None:
        report["model"] = model_info(folder, context_length)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    print(installation_text(report["installation"]))
    if folder is not None:
        print()
        print(model_text(report["model"]))


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def add_commands(app: typer.Typer) -> None:
    """Add all commands of the runtime to an application."""
    for command in (chat, generate, info):
        app.command()(command)
    cli_measure.add_commands(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands of this module; returns the exit code."""
    app = new_tools("Run Fairy2i models: chat with them, generate text, look at what is installed.")
    add_commands(app)
    return run_app(app, "fairy2i", arguments)
