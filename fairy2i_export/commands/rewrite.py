"""``fairy2i-export model.onnx``: the options that make sense there, and the table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fairy2i_export.commands.display import Display
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.rewrite import RewriteReport, rewrite_onnx
from fairy2i_runtime.commands.process.streams import note_done
from fairy2i_runtime.commands.tables import print_table

_NAMES_SHOWN = 3


def rewrite_command(source: str, output: Path | None, *, dry_run: bool, quiet: bool, options: Mapping[str, Any]) -> None:
    """Rewrite an ONNX model and print what was done."""
    with Display(quiet) as display:
        report = rewrite_onnx(source, output, dry_run=dry_run, observer=display, **options)
        if report.path is not None:
            note_done(f"The model itself is complete: {report.path}")
    for warning in report.warnings:
        display.err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if not quiet:
        print_report(report, display.out)


def print_report(report: RewriteReport, console: Console) -> None:
    """The passes and what became of the layers."""
    title = f"{report.source} -> {report.path or '(dry run: nothing was written)'}"
    table = Table(show_header=False, title=escape(title))
    table.add_column()
    table.add_column()
    table.add_row("passes", ", ".join(f"{name} {count}" for name, count in report.passes.items()))
    table.add_row("layers rewritten", f"{len(report.rewritten)} of {len(report.rewritten) + len(report.left)}")
    for origin, count in Counter(linear.origin for linear in report.rewritten).items():
        stages = sorted({linear.stages for linear in report.rewritten if linear.origin == origin})
        table.add_row(f"  {origin}", f"{count}, stages {', '.join(map(str, stages))}")
    if report.already:
        table.add_row("Fairy2iMatMul before", str(report.already))
    for reason, names in report.reasons.items():
        listed = ", ".join(names[:_NAMES_SHOWN]) + (" ..." if len(names) > _NAMES_SHOWN else "")
        table.add_row("left", escape(f"{len(names)} {reason} ({listed})"))
    if report.rewritten:
        table.add_row("their weights", f"{human_bytes(report.dense_bytes)} -> {human_bytes(report.packed_bytes)}")
    about = "about " if report.path is None else ""
    table.add_row("model", f"{human_bytes(report.source_bytes)} -> {about}{human_bytes(report.output_bytes)}")
    errors = {linear.name: linear.error for linear in report.rewritten if linear.error is not None}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        mean = sum(errors.values()) / len(errors)
        table.add_row("quantization error", escape(f"{mean:.1%} mean, {errors[worst]:.1%} worst ({worst})"))
    table.add_row("time", f"{report.seconds:.1f} s")
    print_table(console, table)
    if report.path is None and report.rewritten:  # the names are what --include and --exclude are written with
        print_table(console, _layers(report))


def _layers(report: RewriteReport) -> Table:
    """Every layer that would be rewritten."""
    table = Table(title="would be rewritten")
    for heading in ("layer", "node", "weight", "operator", "N x K", "stages", "origin"):
        table.add_column(heading)
    for x in report.rewritten:
        sizes = f"{x.out_features} x {x.in_features}"
        table.add_row(*map(escape, (x.name, x.node, x.weight, x.operator, sizes, str(x.stages), x.origin)))
    return table
