"""The command ``fairy2i generate``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fairy2i_runtime.commands import given_text
from fairy2i_runtime.commands.options import (
    Context,
    Folder,
    Isa,
    Kernel,
    Lookup,
    Seed,
    Stop,
    Threads,
    TrustGraph,
    given_sampling,
    sampling_option,
    sampling_text,
)

if TYPE_CHECKING:
    from fairy2i_runtime.text.options import GenerationChoices


def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 128,
    temperature: Annotated[float | None, sampling_option("temperature", "0")] = None,
    top_k: Annotated[int | None, sampling_option("top_k", "0")] = None,
    top_p: Annotated[float | None, sampling_option("top_p", "1")] = None,
    repetition_penalty: Annotated[float | None, sampling_option("repetition_penalty", "1")] = None,
    recommended: Annotated[
        bool,
        typer.Option("--recommended", help="Sample as the model's generation_config.json recommends, but for options."),
    ] = False,
    seed: Seed = None,
    stop: Stop = None,
    lookup: Lookup = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")] = False,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    context_length: Context = None,
    trust_graph: TrustGraph = False,
    stream: Annotated[bool, typer.Option(help="Print the text as it is generated, or at the end.")] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens per second to standard error.")] = False,
) -> None:
    """Continue a text and print what is new."""
    from fairy2i_runtime.commands.terminal.interrupts import heeding_ctrl_c, printing_text
    from fairy2i_runtime.commands.terminal.shown import shown
    from fairy2i_runtime.model import load
    from fairy2i_runtime.text.options import GenerationOptions
    from fairy2i_runtime.text.recommended import recommended_sampling

    chosen = given_sampling(temperature, top_k, top_p, repetition_penalty)
    rest: GenerationChoices = {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "stop": [given_text.argument("--stop", text) for text in stop or ()],
        "lookup": lookup,
        "ignore_eos": ignore_eos,
    }
    options = GenerationOptions.of(**chosen, **rest)  # mistakes are told before the model is loaded
    text = given_text.standard_input() if prompt == "-" else given_text.argument("PROMPT", prompt)
    model = load(folder, threads=threads, kernel=kernel, isa=isa, context_length=context_length, trust_graph=trust_graph)
    if recommended:
        of_model = recommended_sampling(folder)
        options = GenerationOptions.of(**{**of_model, **chosen}, **rest)
        print(sampling_text(options, of_model, chosen), file=sys.stderr, flush=True)
    pieces = model.stream(text, **vars(options))
    with printing_text():
        with heeding_ctrl_c(pieces.cancel):
            result = pieces.run(_print_piece if stream else None)
        print("" if stream else shown(result.text))
        if stats:
            print(f"{result.timings}; ended by: {result.finish_reason}", file=sys.stderr)


def _print_piece(text: str) -> None:
    from fairy2i_runtime.commands.terminal.shown import shown

    print(shown(text), end="", flush=True)
