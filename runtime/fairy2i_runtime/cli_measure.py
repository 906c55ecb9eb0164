"""The commands ``fairy2i ppl`` and ``fairy2i bench``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fairy2i_runtime.bench import BenchOptions, bench
from fairy2i_runtime.errors import OptionError
from fairy2i_runtime.model import Model, load
from fairy2i_runtime.options_cli import Folder, Isa, Kernel, Threads
from fairy2i_runtime.perplexity import (
    PROTOCOLS,
    REFERENCE_WINDOW,
    Perplexity,
    Scorer,
    Windows,
    measure,
    model_scorer,
    reference_windows,
    sliding_windows,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TextFile = Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text to read.", show_default=False)]
ProtocolName = Annotated[
    str, typer.Option("--protocol", metavar="P", help="sliding, reference (as the method's authors measure) or both.")
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
Tokens = Annotated[
    int | None, typer.Option("--tokens", metavar="N", help="Use at most this many tokens of the text.", show_default="all")
]
MIB = 2**20


def ppl(
    folder: Folder,
    text: TextFile,
    protocol: ProtocolName = "both",
    window: WindowSize = None,
    stride: Stride = None,
    separator: Separator = "\n",
    tokens: Tokens = None,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a text, by a sliding window and by the protocol of the method's authors."""
    content = read_text(text)
    model = load(folder, threads=threads, kernel=kernel, isa=isa)
    cuts = cut_text(model, content, protocol, window, stride, separator, tokens)
    results = run_protocols(cuts, model_scorer(model), "model")
    if as_json:
        print(json.dumps(ppl_report(folder, text, content, results), indent=2))
        return
    show_perplexity(results)


def read_text(path: Path) -> str:
    """A UTF-8 text file, newlines as they are.

    Raises:
        OptionError: if it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--text {path}: expected a UTF-8 text file: {error}") from error


def cut_text(
    model: Model,
    text: str,
    protocol: str,
    window: int | None,
    stride: int | None,
    separator: str,
    tokens: int | None,
) -> list[Windows]:
    """The windows of every protocol asked for.

    Raises:
        OptionError: if an option is unknown or out of range.
    """
    if protocol not in (*PROTOCOLS, "both"):
        raise OptionError(f"--protocol: expected sliding, reference or both, got {protocol!r}")
    if tokens is not None and tokens < 2:
        raise OptionError(f"--tokens: expected at least 2, got {tokens}")
    context = model.context_length
    if window is not None and not 2 <= window <= context:
        raise OptionError(f"--window: expected 2 to {context} (the model's context), got {window}")
    cuts = []
    if protocol != "reference":
        cuts.append(sliding_windows(model.tokenizer, text, window or context, stride, tokens))
    if protocol != "sliding":
        size = window or min(REFERENCE_WINDOW, context)
        cuts.append(reference_windows(model.tokenizer, text, size, separator.replace(r"\n", "\n"), tokens))
    return cuts


def run_protocols(cuts: list[Windows], scorer: Scorer, title: str) -> list[Perplexity]:
    """Measure all protocols, with a progress bar on a terminal."""
    with progress_bar(title, sum(len(window.ids) for cut in cuts for window in cut.windows)) as advance:
        return [measure(cut, scorer, advance) for cut in cuts]


class progress_bar:
    """A context manager that shows a progress bar on stderr, if that is a terminal, and yields a function to advance it."""

    def __init__(self, title: str, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:8}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda amount: self._progress.advance(self._task, amount)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def ppl_report(folder: Path, text: Path, content: str, results: list[Perplexity]) -> dict[str, Any]:
    """What ``--json`` prints."""
    data = content.encode("utf-8")
    return {
        "model": str(folder),
        "text": {"file": str(text), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "results": [result.as_dict() for result in results],
    }


def show_perplexity(results: list[Perplexity]) -> None:
    """The results and, below, what the protocols are."""
    out = Console()
    table = Table(box=SIMPLE)
    for title in ("protocol", "perplexity", "nats/token", "bits/byte", "tokens", "windows"):
        table.add_column(title, justify="left" if title == "protocol" else "right", no_wrap=True)
    for result in results:
        bits = result.bits_per_byte
        table.add_row(
            result.windows.protocol,
            f"{result.perplexity:.3f}",
            f"{result.loss:.3f} ± {result.loss_error:.3f}",
            "" if bits is None else f"{bits:.3f}",
            f"{len(result.log_probs):,}",
            f"{len(result.windows.windows):,}",
        )
    out.print(table)
    for result in results:
        cut = result.windows
        dropped = f" ({cut.dropped_documents} documents were left out)" if cut.dropped_documents else ""
        out.print(f"[bold]{cut.protocol}[/]: {escape(cut.statement)}{dropped}", highlight=False, soft_wrap=True)


def bench_command(
    folder: Folder,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to generate after it, at least 2.")] = 64,
    repeat: Annotated[int, typer.Option(metavar="N", help="Measured repetitions, after one cold run.")] = 5,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    as_json: Json = False,
) -> None:
    """Measure speed, latency, memory and load time of a model in a fresh process."""
    report = bench(folder, BenchOptions(prompt_tokens, new_tokens, repeat, threads, kernel, isa))
    if as_json:
        print(json.dumps(report, indent=2))
        return
    show_bench(report)


def show_bench(report: dict[str, Any]) -> None:
    """The measurements for people."""
    out = Console()
    used, machine, memory = report["configuration"], report["machine"], report["memory_bytes"]
    threads = used["threads"] or "onnxruntime's default number of"
    where = f"{machine['processor']}, {machine['logical_processors']} logical processors, {machine['platform']}"
    out.print(f"[bold]{escape(report['model'])}[/] on {escape(where)}", highlight=False)
    out.print(
        f"kernel {used['kernel']} ({used['isa']}), {threads} threads, onnxruntime {used['onnxruntime']}", highlight=False
    )
    table = Table(box=SIMPLE, title=f"{used['repeat']} repetitions after a cold one", title_justify="left")
    for title in ("", "mean", "± sd", "min", "max"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    rows = (
        (f"prompt of {used['prompt_tokens']}, tokens/s", "prompt_tokens_per_second", 1.0),
        (f"decode of {used['new_tokens'] - 1} after it, tokens/s", "decode_tokens_per_second", 1.0),
        ("first token after, ms", "first_token_seconds", 1000.0),
    )
    for title, key, factor in rows:
        found = report[key]
        spread = found["standard_deviation"]
        cells = [found["mean"], spread, found["min"], found["max"]]
        table.add_row(title, *("" if value is None else f"{factor * value:,.1f}" for value in cells))
    out.print(table)
    cold = f"first token of the cold run {1000 * report['cold_first_token_seconds']:,.1f} ms"
    load_ms, start_ms = 1000 * report["load_seconds"], 1000 * report["start_seconds"]
    out.print(f"load {load_ms:,.0f} ms, after {start_ms:,.0f} ms of starting Python; {cold}", highlight=False)
    if memory["peak"] is not None:
        parts = [f"{memory['peak'] / MIB:,.0f} MiB at most"]
        if memory["resident"] is not None:
            parts.append(f"{memory['resident'] / MIB:,.0f} MiB at the end")
        if memory["mapped"] is not None and memory["private"] is not None:
            parts.append(
                f"{memory['mapped'] / MIB:,.0f} MiB of them mapped from files, {memory['private'] / MIB:,.0f} private"
            )
        out.print(f"resident memory {', '.join(parts)}", highlight=False)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to an application."""
    app.command()(ppl)
    app.command("bench")(bench_command)
