"""What ``fairy2i ppl``, ``bench`` and ``tune`` show to people, and the progress bar of commands that take a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fairy2i_runtime.commands.tables import print_table
from fairy2i_runtime.measure.memory import human_bytes
from fairy2i_runtime.measure.progress import make_progress

if TYPE_CHECKING:
    from pathlib import Path

    from fairy2i_runtime.measure.perplexity import Perplexity
    from fairy2i_runtime.measure.tune import Tuning


class progress_bar:
    """A context manager that shows a progress bar on stderr (now and then a line if that is no terminal).

    It yields a function to advance it by a number of units.
    """

    def __init__(self, title: str, total: int, unit: str = "") -> None:
        self._progress = make_progress(Console(stderr=True))
        self._task = self._progress.add_task(title, total=total, unit=unit)

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return lambda amount: self._progress.advance(self._task, amount)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def show_perplexity(results: list[Perplexity]) -> None:
    """The results and, below, what the protocols are."""
    out = Console()
    table = Table(box=SIMPLE)
    for title in ("protocol", "perplexity", "nats/token", "bits/byte", "tokens", "windows"):
        table.add_column(title, justify="left" if title == "protocol" else "right")
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
    print_table(out, table)
    for result in results:
        cut = result.windows
        dropped = f" ({cut.dropped_documents} documents were left out)" if cut.dropped_documents else ""
        out.print(f"[bold]{cut.protocol}[/]: {escape(cut.statement)}{dropped}", highlight=False, soft_wrap=True)


def show_bench(report: dict[str, Any]) -> None:
    """The measurements for people."""
    out = Console()
    used, machine, memory = report["configuration"], report["machine"], report["memory_bytes"]
    kernel = f"kernel {used['kernel']} ({used['isa']})" if used["kernel"] else "operators of onnxruntime"
    if used["prompt_kernel"] != used["kernel"]:
        kernel += f", for the prompt {used['prompt_kernel']} ({used['prompt_isa']})"
    threads = used["threads"] or "onnxruntime's default number of"
    where = f"{machine['processor']}, {machine['logical_processors']} logical processors, {machine['platform']}"
    out.print(f"[bold]{escape(report['model'])}[/] on {escape(where)}", highlight=False, soft_wrap=True)
    out.print(f"{kernel}, {threads} threads, onnxruntime {used['onnxruntime']}", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE, title=f"{used['repeat']} repetitions after a cold one")
    for title in ("", "mean", "± sd", "min", "max"):
        table.add_column(title, justify="left" if not title else "right")
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
    print_table(out, table)
    cold = f"first token of the cold run {1000 * report['cold_first_token_seconds']:,.1f} ms"
    load_ms, start_ms = 1000 * report["load_seconds"], 1000 * report["start_seconds"]
    out.print(
        f"load {load_ms:,.0f} ms, after {start_ms:,.0f} ms of starting Python; {cold}", highlight=False, soft_wrap=True
    )
    if memory["peak"] is not None:
        parts = [f"{human_bytes(memory['peak'])} at most"]
        if memory["resident"] is not None:
            parts.append(f"{human_bytes(memory['resident'])} at the end")
        if memory["mapped"] is not None and memory["private"] is not None:
            parts.append(
                f"{human_bytes(memory['mapped'])} of them mapped from files, {human_bytes(memory['private'])} private"
            )
        out.print(f"resident memory {', '.join(parts)}", highlight=False, soft_wrap=True)


def show_tuning(found: Tuning, file: Path | None) -> None:
    """What was tried, what was taken, and where it is kept."""
    out = Console()
    table = Table(box=SIMPLE)
    for title in ("setting", "on", "ms", "min", "max", ""):
        table.add_column(title, justify="right" if title in ("ms", "min", "max") else "left")
    for trial in found.trials:
        numbers = (trial.median, min(trial.seconds), max(trial.seconds))
        table.add_row(
            trial.setting, trial.on, *(f"{1000 * value:,.2f}" for value in numbers), "taken" if trial.taken else ""
        )
    print_table(out, table)
    threads = found.threads or "onnxruntime's default number of"
    out.print(f"settings for {threads} threads: [bold]{escape(found.text)}[/]", highlight=False, soft_wrap=True)
    kept = "not kept (--no-keep)" if file is None else f"kept in {file}"
    out.print(escape(kept), highlight=False, soft_wrap=True)
