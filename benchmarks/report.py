"""Tables of the records that bench_linear.py writes: ``python benchmarks/report.py results.json`` prints Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]
COLUMNS = ("engine", "M", "ms", "spread", "Gweights/s", "% of floor", "vs ort-q2")
BEGIN, END = "<!-- results{} -->", "<!-- /results{} -->"


def label(record: Record) -> str:
    """The engine with its kernel and ISA, such as ``lut avx2``."""
    return f"{record['kernel']} {record['isa']}" if record["engine"] == "fairy2i" else str(record["engine"])


def rows_of(records: list[Record]) -> list[tuple[str, ...]]:
    """Cells of the table, fastest first for each number of rows M."""
    cells: list[tuple[str, ...]] = []
    for r in sorted(records, key=lambda r: (r["M"], r["ms"])):
        floor = "" if r["floor_pct"] is None else f"{r['floor_pct']:.0f}"
        ratio = "" if r["vs_ort_q2"] is None else f"{r['vs_ort_q2']:.2f}"
        cells.append(
            (label(r), str(r["M"]), f"{r['ms']:.4g}", f"{100 * r['spread']:.0f} %", f"{r['gweights_s']:.1f}", floor, ratio)
        )
    return cells


def groups(records: list[Record]) -> dict[tuple[str, int], list[Record]]:
    """Records by shape and number of threads, sums over models first."""
    names = sorted({(r["shape"], r["threads"]) for r in records}, key=lambda key: ("x" in key[0], key[0], key[1]))
    return {key: [r for r in records if (r["shape"], r["threads"]) == key] for key in names}


def title(shape: str, threads: int) -> str:
    what = f"{shape}: all linear layers of the model" if "x" not in shape else f"one layer {shape} (N x K)"
    return f"{what}, {threads} thread{'s' * (threads > 1)}"


def print_tables(records: list[Record], console: Console) -> None:
    for (shape, threads), group in groups(records).items():
        table = Table(*COLUMNS, title=title(shape, threads))
        for column in table.columns[1:]:
            column.justify = "right"
        previous = ""
        for cells in rows_of(group):
            if previous and cells[1] != previous:
                table.add_section()
            table.add_row(*cells)
            previous = cells[1]
        console.print(table)


def markdown(records: list[Record]) -> str:
    lines = [f"Machine: {', '.join(sorted({r['machine'] for r in records}))}.", ""]
    for (shape, threads), group in groups(records).items():
        lines += [f"**{title(shape, threads)}**", "", f"| {' | '.join(COLUMNS)} |", "|---" + "|--:" * 6 + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows_of(group)]
        lines.append("")
    return "\n".join(lines)


def ratios(records: list[Record], names: str) -> str:
    """How many times the time of one kernel another one takes: a row for each shape and number of threads, a column for each M.

    Args:
        records: those of both.
        names: the two, as :func:`label` has them, with a slash between: ``lut avx512/dot avx512_vbmi``.

    Raises:
        ValueError: if the names are not two, or nothing was measured with both.
    """
    slow, slash, fast = names.partition("/")
    if not slash:
        raise ValueError(f"expected two kernels with a slash between, such as 'lut avx2/dot avx2', found {names!r}")
    times = {
        name: {(r["shape"], r["threads"], r["M"]): r["ms"] for r in records if label(r) == name} for name in (slow, fast)
    }
    both = times[slow].keys() & times[fast].keys()
    if not both:
        raise ValueError(f"expected records of {slow} and of {fast}, found {sorted({label(r) for r in records})}")
    columns = sorted({rows for _, _, rows in both})
    lines = [
        f"| N x K | threads | {' | '.join(f'M = {rows}' for rows in columns)} |",
        "|---|--:" + "|--:" * len(columns) + "|",
    ]
    for shape, threads in groups(records):
        cells = [
            f"{times[slow][key] / times[fast][key]:.2f}" if (key := (shape, threads, rows)) in both else ""
            for rows in columns
        ]
        if any(cells):
            lines.append(f"| {shape} | {threads} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def around(page: Path, section: str = "") -> tuple[str, str]:
    """What stands before the results of a Markdown page, or of a section of it, and behind them; the marks included.

    Raises:
        ValueError: if the page has no such marks.
    """
    name = f" {section}" if section else ""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN.format(name))
    _, end, after = rest.partition(END.format(name))
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN.format(name)} and {END.format(name)}")
    return before + begin, end + after


def insert(text: str, page: Path, section: str = "") -> None:
    """Replace what stands between the two marks.

    Raises:
        ValueError: if the page has no such marks.
    """
    before, after = around(page, section)
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def main(
    results: Annotated[list[Path], typer.Argument(help="Files written by bench_linear.py --json.")],
    shape: Annotated[list[str] | None, typer.Option(help="Only these: 7B, 135M, NxK; repeatable.")] = None,
    ratio: Annotated[
        str | None, typer.Option(help="Only the times of one kernel over another's: 'lut avx2/dot avx2'.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Replace the results in this page instead of printing.")] = None,
    section: Annotated[str, typer.Option(help="Those of this name: a page may hold results of several processors.")] = "",
) -> None:
    """Print the records as Markdown tables."""
    try:
        records = [record for file in results for record in json.loads(file.read_text(encoding="utf-8"))]
        wanted = [r for r in records if not shape or r["shape"] in shape]
        text = ratios(wanted, ratio) if ratio else markdown(wanted)
    except (OSError, ValueError, KeyError, TypeError) as error:
        names = ", ".join(map(str, results))
        print(f"report: error: {names}: expected records of bench_linear.py --json ({error!r})", file=sys.stderr)
        raise typer.Exit(2) from error
    if into is None:
        print(text)
        return
    try:
        insert(text, into, section)
    except (OSError, ValueError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
