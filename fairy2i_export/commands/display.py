"""What ``fairy2i-export`` shows: the estimate, a progress bar, and the summary table."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from fairy2i_export.compile.dry_run import DryRun
from fairy2i_export.compile.result.report import ExportReport
from fairy2i_export.output.progress import Observer, Planned
from fairy2i_export.output.sizes import Estimate, human_bytes
from fairy2i_export.source.rotation.choice import rotation_words
from fairy2i_runtime.commands.tables import print_table
from fairy2i_runtime.measure.memory import memory_rows
from fairy2i_runtime.measure.progress import make_progress


class Display(Observer):
    """Progress on stderr, results on stdout."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.out = Console()
        self.err = Console(stderr=True)
        self.progress = make_progress(self.err, TaskProgressColumn(), TextColumn("left"), width=10, quiet=quiet)
        self.task: TaskID | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def planned(self, estimate: Estimate, options: Planned) -> None:
        if not self.quiet:
            bits = options.stages if options.bits is None else f"{options.bits:g}"
            self.err.print(
                f"W{bits}, {options.quantizer}, {options.profile}: about {human_bytes(estimate.output_bytes)} of output, "
                f"{human_bytes(estimate.peak_ram_bytes)} of memory at most",
                highlight=False,
                soft_wrap=True,
            )

    def phase(self, title: str, total: int) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(title, total=total)

    def advance(self, amount: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, amount)

    def note(self, message: str) -> None:
        self.err.print(message, highlight=False, soft_wrap=True, markup=False)

    def finished(self, report: ExportReport) -> None:
        for warning in report.warnings:
            self.err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
        if not self.quiet:
            print_table(self.out, summary_table(report))
            self.out.print(report.next_step, highlight=False, soft_wrap=True, markup=False)

    def dry_run(self, run: DryRun) -> None:
        """Print what an export would do."""
        for warning in run.warnings:
            self.err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
        print_table(self.out, contents_table(run))
        print_table(self.out, memory_table(run))
        self.out.print("Nothing was written.", highlight=False)


def contents_table(run: DryRun) -> Table:
    """What an export would store."""
    table = Table(title=escape(f"{run.source} -> {run.path}"))
    table.add_column("tensor")
    for heading in ("count", "type", "shape", "size"):
        table.add_column(heading, justify="right")
    for group in run.groups:
        shape = " x ".join(map(str, group.shape))
        table.add_row(escape(group.name), str(group.count), group.dtype.lower(), shape, human_bytes(group.total_bytes))
    table.add_section()
    table.add_row("model.onnx, model.onnx.data", "", "", "", human_bytes(run.estimate.output_bytes))
    return table


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{max(1, round(minutes))} min"


def memory_table(run: DryRun) -> Table:
    """The memory to make the model and to run it."""
    title = "memory (estimated)" if not run.calibration_seconds else "memory and time (estimated)"
    table = Table(show_header=False, title=title)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("this export, at most", human_bytes(run.estimate.peak_ram_bytes))
    if run.calibration_seconds:
        table.add_row("its calibration, about, here", _duration(run.calibration_seconds))
    table.add_section()
    table.add_row("running it:", "")
    for row in memory_rows(run.device.as_dict(), run.device.context):
        table.add_row(*row)
    return table


def summary_table(report: ExportReport) -> Table:
    """The table at the end of an export."""
    table = Table(show_header=False, title=escape(f"{report.source} -> {report.path}"))
    table.add_column()
    table.add_column()
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
    if options.rotation is not None:
        table.add_row("rotated", rotation_words(options.rotation))
    table.add_row("embedding, lm_head", f"{options.embedding}, {options.lm_head}")
    ratio = report.source_bytes / report.output_bytes
    table.add_row("size", f"{human_bytes(report.output_bytes)} (source {human_bytes(report.source_bytes)}, {ratio:.1f}:1)")
    table.add_row("quantization error", f"{report.mean_error:.1%} mean, {worst:.1%} worst ({worst_name})")
    graphs = [name for name in ("tokenizer.onnx", "detokenizer.onnx") if (report.path / name).exists()]
    if graphs:
        table.add_row("tokenizer graphs", ", ".join(graphs))
    if report.verdicts:
        table.add_row(
            "kernels that hold", ", ".join(name for name, verdict in report.verdicts.items() if verdict.holds) or "none"
        )
    if report.peak_ram_bytes is not None:
        table.add_row("peak RAM", human_bytes(report.peak_ram_bytes))
    if report.reused:
        table.add_row("continued", f"{report.reused} tensors were finished before")
    table.add_row("time", f"{report.seconds:.1f} s")
    return table
