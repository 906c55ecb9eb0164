"""Perplexity of models that were converted without training, in onnxruntime, by every kernel.

    python benchmarks/quality/converted.py FOLDER... --text FILE [--kernels exact,lut,dot] [--tokens 2048,4096] [--window 1024]

The text is one stream of tokens, cut into windows that do not overlap; every token but the first of a window is scored, and a
window is read in one run. ``--tokens`` are the lengths of consecutive parts of the text with a figure of their own. Nothing
is put before a window. The figures for the float model in docs/quality.md are torch's for the same windows: ``--float SOURCE``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from perplexities import in_torch
from rich.console import Console
from rich.table import Table

from fairy2i_runtime import load
from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.measure.perplexity import Perplexity, Window, Windows, model_scorer
from fairy2i_runtime.measure.perplexity import measure as measure_windows
from fairy2i_runtime.text.tokenizer import Tokenizer


def parts_of(folder: Path, text: str, lengths: list[int], window: int) -> list[Windows]:
    """Consecutive parts of a text.

    Args:
        folder: holds the tokenizer.
        text: the text.
        lengths: tokens of every part, multiples of the window.
        window: tokens that are read in one run.

    Raises:
        typer.BadParameter: lengths that are no multiples, or too short a text.
    """
    ids = Tokenizer.load(folder).encode(text, add_special_tokens=False)
    if any(length % window for length in lengths):
        raise typer.BadParameter(f"--tokens: expected multiples of the window of {window} tokens, got {lengths}")
    if len(ids) < sum(lengths):
        raise typer.BadParameter(f"--text: {len(ids)} tokens, expected {sum(lengths)}")
    parts, at = [], 0
    for length in lengths:
        starts = range(at, at + length, window)
        windows = [Window(ids[start : start + window], np.ones(window - 1, np.bool_)) for start in starts]
        count = len(windows) * (window - 1)
        statement = f"windows of {window} tokens without overlap; all but the first of each are scored"
        parts.append(Windows("sliding", statement, windows, window, window, length, None, count))
        at += length
    return parts


def main(
    folders: Annotated[list[Path], typer.Argument(help="Exported folders.")],
    text: Annotated[Path, typer.Option(help="Text to measure with.")],
    kernels: Annotated[str, typer.Option(help="Kernels, the one to compare with first.")] = "exact,lut,dot",
    tokens: Annotated[str, typer.Option(help="Lengths of consecutive parts of the text.")] = "2048,4096",
    window: Annotated[int, typer.Option(help="Tokens of a window.")] = 1024,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    source: Annotated[Path | None, typer.Option("--float", help="Checkpoint to measure with torch, too.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    console = Console()
    parts = parts_of(folders[0], read_text(text), [int(length) for length in tokens.split(",")], window)
    results: list[dict[str, Any]] = []

    def note(model: Path, kernel: str, found: list[Perplexity]) -> None:
        figures = [perplexity.perplexity for perplexity in found]
        results.append({"model": model.name, "kernel": kernel, "tokens": tokens, "window": window, "perplexity": figures})
        console.print(f"{model.name} {kernel}: " + ", ".join(f"{figure:,.3f}" for figure in figures), highlight=False)
        if json_file is not None:  # after every model: a long run can be stopped
            json_file.write_text(json.dumps(results, indent=1))

    if source is not None:
        note(source, "float", [in_torch(source, part) for part in parts])
    for folder in folders:
        for kernel in kernels.split(","):
            scorer = model_scorer(load(folder, threads=threads, kernel=kernel))
            note(folder, kernel, [measure_windows(part, scorer) for part in parts])
    console.print(table_of(results, tokens.split(",")))


def table_of(results: list[dict[str, Any]], lengths: list[str]) -> Table:
    """All figures, and how far each is from that of the model's first kernel."""
    table = Table(title="perplexity after conversion without training", title_justify="left")
    for heading in ("model", "kernel", *(f"{length} tokens" for length in lengths), *("difference" for _ in lengths)):
        table.add_column(heading, justify="left" if heading in ("model", "kernel") else "right")
    first: dict[str, list[float]] = {}
    for result in results:
        figures = result["perplexity"]
        base = first.setdefault(result["model"], figures)
        differences = [f"{figure / other - 1:+.2%}" for figure, other in zip(figures, base, strict=True)]
        table.add_row(result["model"], result["kernel"], *(f"{figure:,.2f}" for figure in figures), *differences)
    return table


if __name__ == "__main__":
    typer.run(main)
