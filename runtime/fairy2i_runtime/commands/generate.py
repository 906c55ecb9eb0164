"""The command ``fairy2i generate``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fairy2i_runtime.commands import given_text
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
    from fairy2i_runtime.commands.terminal.interrupts import heeding_ctrl_c, printing_text
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


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
