"""How work goes on, for all commands: here and not in commands/, because training shows it and imports no commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

INTERVAL = 30.0  # seconds between two lines where there is no terminal
_AT_ONCE = 1.0  # what is done in the first second was there before: it says nothing about the speed


def make_progress(
    console: Console,
    *columns: ProgressColumn,
    width: int = 8,
    transient: bool = True,
    quiet: bool = False,
    interval: float | None = None,
) -> Progress:
    """A progress display: a bar on a terminal, elsewhere a line now and then.

    Args:
        console: to show it on.
        columns: between the bar and the remaining time; the share that is done by default.
        width: characters that the description takes at least.
        transient: whether the bar is wiped out at the end.
        quiet: show nothing.
        interval: seconds between two lines, by default 30; 0: no lines.
    """
    return _Display(
        TextColumn(f"{{task.description:{width}}}"),
        BarColumn(),
        *(columns or (TaskProgressColumn(),)),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=quiet or not console.is_terminal,
        interval=0.0 if quiet or console.quiet or console.is_terminal else INTERVAL if interval is None else interval,
    )


@contextmanager
def working(console: Console, title: str) -> Iterator[None]:
    """Show that something goes on whose end is not known: a spinner on a terminal, elsewhere a line now and then."""
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        with make_progress(console) as lines:
            lines.add_task(title, total=None)
            yield


class _Display(Progress):
    """rich's display, and lines where that shows nothing: "quantizing: 43 % (10 of 30 layers), 4:10, about 5:30 left"."""

    def __init__(self, *columns: str | ProgressColumn, interval: float, **details: Any) -> None:
        super().__init__(*columns, **details)
        self._interval = interval
        self._ended = Event()
        self._talker: Thread | None = None
        self._bases: dict[int, tuple[float, float]] = {}  # task -> seconds and units from which its speed is reckoned

    def start(self) -> None:
        super().start()
        if self._interval and self._talker is None:
            self._ended.clear()
            self._talker = Thread(target=self._talk, name="fairy2i-progress", daemon=True)
            self._talker.start()

    def stop(self) -> None:
        super().stop()
        if self._talker is not None:
            self._ended.set()
            self._talker.join(1.0)  # it may be stuck in a pipe that nobody reads
            self._talker = None

    def advance(self, task_id: Any, advance: float = 1) -> None:
        super().advance(task_id, advance)
        task = self._tasks[task_id]
        if (task.elapsed or 0) < _AT_ONCE:
            self._bases[task_id] = task.elapsed or 0, task.completed

    def _talk(self) -> None:
        while not self._ended.wait(self._interval):
            for task in self.tasks:
                if not task.finished:
                    try:
                        self.console.print(self._line(task), highlight=False, soft_wrap=True, markup=False)
                    except Exception:  # nobody to talk to; whoever works finds out by himself
                        return

    def _line(self, task: Any) -> str:
        elapsed = task.elapsed or 0.0
        parts = []
        if task.total:
            unit = task.fields.get("unit")
            counted = f" ({task.completed:,.0f} of {task.total:,.0f} {unit})" if unit else ""
            parts.append(f"{100 * task.completed / task.total:.0f} %{counted}")
        parts.append(_clock(elapsed))
        since, before = self._bases.get(task.id, (0.0, 0.0))
        if task.total and task.completed > before and elapsed > since:
            speed = (task.completed - before) / (elapsed - since)
            parts.append(f"about {_clock((task.total - task.completed) / speed)} left")
        return f"{task.description}: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
