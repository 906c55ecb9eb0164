"""What ``fairy2i-export`` shows: the estimate, a progress bar, and the summary table."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fairy2i_export.exporter import Observer
from fairy2i_export.options import ExportOptions
from fairy2i_export.report import Estimate, ExportReport, human_bytes


class Display(Observer):
    """Progress on stderr, results on stdout."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.out = Console()
        self.err = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
            disable=quiet or not self.err.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def planned(self, estimate: Estimate, options: ExportOptions) -> None:
        if not self.quiet:
            self.err.print(
                f"W{options.stages}, {options.profile}: about {human_bytes(estimate.output_bytes)} of output, "
                f"{human_bytes(estimate.peak_ram_bytes)} of memory at most",
                highlight=False,
            )

    def phase(self, title: str, total: int) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(title, total=total)

    def advance(self, amount: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, amount)

    def finished(self, report: ExportReport) -> None:
        for warning in report.warnings:
            self.err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
        if not self.quiet:
            self.out.print(summary_table(report))
            self.out.print(f"Try it: {report.command}", highlight=False, soft_wrap=True, markup=False)


def summary_table(report: ExportReport) -> Table:
    """The table at the end of an export."""
    table = Table(
        show_header=False, title=escape(f"{report.source} -> {report.path}"), title_justify="left", title_style="bold"
    )
    table.add_column()
    table.add_column(overflow="fold")
    options, (worst_name, worst) = report.options, report.worst_layer
    kept = Counter(f"{linear.treatment}: {linear.reason}" for linear in report.kept)
    table.add_row(
        "layers rewritten", f"{len(report.rewritten)} of {len(report.linears)} ({human_bytes(report.weight_bytes)})"
    )
    for what, count in kept.items():
        names = [linear.name for linear in report.kept if f"{linear.treatment}: {linear.reason}" == what]
        listed = ", ".join(names[:3]) + (" ..." if count > 3 else "")
        table.add_row("left", escape(f"{count} {what} ({listed})"))
    table.add_row("bits per weight", f"{report.bits_per_weight:.3f}")
    table.add_row("embedding, lm_head", f"{options.embedding}, {options.lm_head}")
    ratio = report.source_bytes / report.output_bytes
    table.add_row("size", f"{human_bytes(report.output_bytes)} (source {human_bytes(report.source_bytes)}, {ratio:.1f}:1)")
    table.add_row("quantization error", f"{report.mean_error:.1%} mean, {worst:.1%} worst ({worst_name})")
    graphs = [name for name in ("tokenizer.onnx", "detokenizer.onnx") if (report.path / name).exists()]
    if graphs:
        table.add_row("tokenizer graphs", ", ".join(graphs))
    if report.peak_ram_bytes is not None:
        table.add_row("peak RAM", human_bytes(report.peak_ram_bytes))
    table.add_row("time", f"{report.seconds:.1f} s")
    return table
