"""Progress bars of all commands: here and not in commands/, because training shows one and imports no commands."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn


def make_progress(
    console: Console, *columns: ProgressColumn, width: int = 8, transient: bool = True, quiet: bool = False
) -> Progress:
    """A progress display that shows itself on a terminal only.

    Args:
        console: to show it on.
        columns: between the bar and the remaining time; the share that is done by default.
        width: characters that the description takes at least.
        transient: whether it is wiped out at the end.
        quiet: show nothing.
    """
    return Progress(
        TextColumn(f"{{task.description:{width}}}"),
        BarColumn(),
        *(columns or (TaskProgressColumn(),)),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=quiet or not console.is_terminal,
    )
