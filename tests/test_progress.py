"""Progress bars: what the commands and training show with the one function that makes them."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, ProgressColumn, TaskProgressColumn, TextColumn

from fairy2i_runtime.commands.display import progress_bar
from fairy2i_runtime.measure.progress import make_progress


def terminal(is_terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=79, color_system=None, legacy_windows=False)


@pytest.mark.parametrize(
    ("columns", "width", "expected"),
    [
        ((), 8, r"layers   [━╸╺ ]{40}  25% -:--:--"),
        ((TaskProgressColumn(), TextColumn("left")), 10, r"layers     [━╸╺ ]{40}  25% left -:--:--"),
        ((MofNCompleteColumn(), TextColumn("{task.fields[text]}")), 8, r"layers   [━╸╺ ]{40} 1/4 loss 3.2 -:--:--"),
    ],
)
def test_columns(columns: tuple[ProgressColumn, ...], width: int, expected: str) -> None:
    console = terminal()
    progress = make_progress(console, *columns, width=width)
    progress.add_task("layers", total=4, completed=1, text="loss 3.2")
    console.print(progress.get_renderable())
    assert re.fullmatch(expected, console.file.getvalue().rstrip())  # type: ignore[attr-defined]


def test_only_terminals_see_it() -> None:
    assert not make_progress(terminal()).disable
    assert make_progress(terminal(), quiet=True).disable
    assert make_progress(terminal(is_terminal=False)).disable
    assert make_progress(terminal()).live.transient
    assert not make_progress(terminal(), transient=False).live.transient


def test_commands_advance_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("layers", 4) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("layers", 4) as advance:
        advance(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "layers" in err
    assert "75%" in err
