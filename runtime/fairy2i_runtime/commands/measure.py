"""The commands ``fairy2i ppl``, ``fairy2i bench`` and ``fairy2i tune``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairy2i_runtime.commands.options import Folder, Isa, Kernel, Threads, TrustGraph
from fairy2i_runtime.errors import OptionError
from fairy2i_runtime.measure.textfile import TextFileError, read_text_file

if TYPE_CHECKING:  # they take a while to import, and --help needs none of them
    from fairy2i_runtime.measure.perplexity import Perplexity, Scorer, Windows
    from fairy2i_runtime.model import Model

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TextFile = Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text to read.", show_default=False)]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar="P",
        help="sliding, reference (as the method's authors measure) or both: those that the text has something for.",
    ),
]
WindowSize = Annotated[
    int | None,
    typer.Option(
        "--window", metavar="N", help="Tokens of a window.", show_default="the context; at most 2048 for reference"
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="sliding: tokens scored per window, the others are context.", show_default="half the window"
    ),
]
Separator = Annotated[
    str, typer.Option(metavar="TEXT", help=r"reference: what stands between documents; \n is a newline.", show_default=r"\n")
]
Bos = Annotated[
    bool,
    typer.Option(
        "--bos/--no-bos", help="reference: begin windows with the beginning-of-text token; iFairy's authors do not."
    ),
]
Tokens = Annotated[
    int | None, typer.Option("--tokens", metavar="N", help="Use at most this many tokens of the text.", show_default="all")
]


def ppl(
    folder: Folder,
    text: TextFile,
    protocol: ProtocolName = "both",
    window: WindowSize = None,
    stride: Stride = None,
    separator: Separator = "\n",
    bos: Bos = True,
    tokens: Tokens = None,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    trust_graph: TrustGraph = False,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a text, by a sliding window and by the protocol of the method's authors."""
    from fairy2i_runtime.measure.perplexity import model_scorer
    from fairy2i_runtime.model import load

    content = read_text(text)
    model = load(folder, threads=threads, kernel=kernel, isa=isa, trust_graph=trust_graph)
    cuts = cut_text(model, content, protocol, window, stride, separator, tokens, bos=bos)
    results = run_protocols(cuts, model_scorer(model), "model")
    if as_json:
        print(json.dumps(ppl_report(folder, text, content, results, cuts), indent=2))
        return
    from fairy2i_runtime.commands.display import show_perplexity

    show_perplexity(results)


def read_text(path: Path) -> str:
    """A UTF-8 text file, newlines as they are.

    Raises:
        OptionError: if it cannot be read, is no text, or holds nothing but blanks.
    """
    try:
        return read_text_file(path)
    except TextFileError as error:
        raise OptionError(f"--text {path}: {error}; expected a UTF-8 text file") from error


class Cuts(list["Windows"]):
    """The windows of every protocol that is measured, and by name why another one that was asked for is not."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, str] = {}


def cut_text(
    model: Model,
    text: str,
    protocol: str,
    window: int | None,
    stride: int | None,
    separator: str,
    tokens: int | None,
    *,
    bos: bool = True,
) -> Cuts:
    """The windows of every protocol asked for. Of both, one for which the text has nothing is left out with a note.

    Raises:
        OptionError: if an option is unknown or out of range, or the text has nothing to score.
    """
    from fairy2i_runtime.measure.perplexity import (
        PROTOCOLS,
        REFERENCE_WINDOW,
        NothingToScore,
        reference_windows,
        sliding_windows,
    )

    if protocol not in (*PROTOCOLS, "both"):
        raise OptionError(f"--protocol: expected sliding, reference or both, got {protocol!r}")
    if tokens is not None and tokens < 2:
        raise OptionError(f"--tokens: expected at least 2, got {tokens}")
    context = model.context_length
    if window is not None and not 2 <= window <= context:
        raise OptionError(f"--window: expected 2 to {context} (the model's context), got {window}")
    cutters: dict[str, Callable[[], Windows]] = {
        "sliding": lambda: sliding_windows(model.tokenizer, text, window or context, stride, tokens),
        "reference": lambda: reference_windows(
            model.tokenizer, text, window or min(REFERENCE_WINDOW, context), separator.replace(r"\n", "\n"), tokens, bos=bos
        ),
    }
    cuts = Cuts()
    for name, cut in cutters.items():
        if protocol not in (name, "both"):
            continue
        try:
            cuts.append(cut())
        except NothingToScore as error:
            if protocol == name:
                raise
            cuts.left_out[name] = str(error).removeprefix(f"protocol {name}: ")
    if not cuts:
        raise OptionError("; ".join(f"protocol {name}: {why}" for name, why in cuts.left_out.items()))
    for name, why in cuts.left_out.items():
        print(f"note: protocol {name} is left out: {why}", file=sys.stderr)
    return cuts


def run_protocols(cuts: list[Windows], scorer: Scorer, title: str) -> list[Perplexity]:
    """Measure all protocols, and show how it goes on."""
    from fairy2i_runtime.commands.display import progress_bar
    from fairy2i_runtime.measure.perplexity import measure

    with progress_bar(title, sum(len(window.ids) for cut in cuts for window in cut.windows), "tokens") as advance:
        return [measure(cut, scorer, advance) for cut in cuts]


def ppl_report(folder: Path, text: Path, content: str, results: list[Perplexity], cuts: Cuts) -> dict[str, Any]:
    """What ``--json`` prints."""
    data = content.encode("utf-8")
    return {
        "model": str(folder),
        "text": {"file": str(text), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "results": [result.as_dict() for result in results],
        "left_out": [{"protocol": name, "reason": why} for name, why in cuts.left_out.items()],
    }


def bench_command(
    folder: Folder,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to generate after it, at least 2.")] = 64,
    repeat: Annotated[int, typer.Option(metavar="N", help="Measured repetitions, after one cold run.")] = 5,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    trust_graph: TrustGraph = False,
    as_json: Json = False,
) -> None:
    """Measure speed, latency, memory and load time of a model in a fresh process."""
    from fairy2i_runtime.commands.display import progress_bar, show_bench
    from fairy2i_runtime.measure.bench import BenchOptions, bench

    options = BenchOptions(prompt_tokens, new_tokens, repeat, threads, kernel, isa, trust_graph)
    with progress_bar("measuring", 1 + repeat, "runs") as advance:
        report = bench(folder, options, lambda: advance(1))
    if as_json:
        print(json.dumps(report, indent=2))
        return
    show_bench(report)


def tune_command(
    folder: Folder,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Turns of every comparison.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep what was found for all models on this machine.")
    ] = True,
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing: remove what was kept for so many threads.")
    ] = False,
    trust_graph: TrustGraph = False,
    as_json: Json = False,
) -> None:
    """Find the settings that are fastest on this machine, with a model, and keep them in the user's cache.

    Results of a model do not depend on them. Nothing else should run meanwhile.
    """
    from fairy2i_runtime.commands.display import progress_bar, show_tuning
    from fairy2i_runtime.engine.threads import default_threads
    from fairy2i_runtime.measure.tune import rounds_of_tuning, tune
    from fairy2i_runtime.ops.tuning import TUNING_VARIABLE, keep_tuning

    used = default_threads() if threads is None else threads
    if forget:
        print(f"nothing is kept for {used} threads in {keep_tuning(used, None)}")
        return
    if os.environ.get(TUNING_VARIABLE):
        raise OptionError(f"{TUNING_VARIABLE} is set, and would be in force in all that is measured: unset it")
    with progress_bar("measuring", rounds_of_tuning(rounds, used), "rounds") as advance:
        found = tune(folder, threads=threads, rounds=rounds, trust_graph=trust_graph, done=lambda: advance(1))
    file = None
    if keep:
        file = keep_tuning(used, {"tuning": found.text, "model": str(folder), "date": date.today().isoformat()})
    if as_json:
        print(json.dumps({**found.as_dict(), "file": None if file is None else str(file)}, indent=2))
        return
    show_tuning(found, file)
