"""Progress bars: what the commands and training show with the one function that makes them."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, ProgressColumn, TaskProgressColumn, TextColumn

from fairy2i_runtime.commands.display import progress_bar
from fairy2i_runtime.measure import progress as progress_module
from fairy2i_runtime.measure.progress import make_progress, working


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


# ---- without a terminal


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_lines_where_there_is_no_terminal() -> None:
    console = terminal(is_terminal=False)
    with make_progress(console, interval=0.05) as progress:
        task = progress.add_task("calibrating", total=30, unit="layers")
        progress.advance(task, 10)
        time.sleep(0.3)
    lines = lines_of(console)
    assert 2 <= len(lines) <= 6
    assert lines[0] == "calibrating: 33 % (10 of 30 layers), 0:00"
    time.sleep(0.15)
    assert lines_of(console) == lines  # nothing after the end


@pytest.mark.parametrize(
    ("elapsed", "base", "completed", "total", "unit", "line"),
    [
        (250.0, (0.0, 0.0), 13, 30, "layers", "x: 43 % (13 of 30 layers), 4:10, about 5:27 left"),
        (3725.0, (0.0, 0.0), 500_000, 1_000_000, "", "x: 50 %, 1:02:05, about 1:02:05 left"),
        (100.5, (0.5, 1500.0), 2000, 4000, "tokens", "x: 50 % (2,000 of 4,000 tokens), 1:40, about 6:40 left"),
        (30.0, (0.0, 0.0), 0, 7, "", "x: 0 %, 0:30"),
        (65.0, (0.0, 0.0), 0, None, "", "x: 1:05"),
    ],
)
def test_what_a_line_says(
    elapsed: float, base: tuple[float, float], completed: float, total: float | None, unit: str, line: str
) -> None:
    """What was there at the beginning (an export that goes on) says nothing about the speed."""
    now = 1000.0
    progress = make_progress(terminal(is_terminal=False), interval=0)
    progress.get_time = lambda: now
    task = progress.add_task("x", total=total, unit=unit)
    now += base[0]
    progress.advance(task, base[1])
    now += elapsed - base[0]
    progress.advance(task, completed - base[1])
    assert progress._line(progress.tasks[0]) == line  # type: ignore[attr-defined]


def test_no_lines_on_a_terminal_or_when_all_shall_be_quiet() -> None:
    for console, quiet in ((terminal(), False), (terminal(is_terminal=False), True)):
        with make_progress(console, quiet=quiet, interval=0.02) as progress:
            progress.add_task("quantizing", total=4)
            time.sleep(0.1)
        assert not re.search(r"quantizing: ", console.file.getvalue())  # type: ignore[attr-defined]
    silent = Console(file=io.StringIO(), quiet=True)
    with working(silent, "tokenizing"):
        pass
    assert lines_of(silent) == []


def test_work_whose_end_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "INTERVAL", 0.05)
    console = terminal(is_terminal=False)
    with working(console, "tokenizing the training text"):
        time.sleep(0.2)
    assert set(lines_of(console)) == {"tokenizing the training text: 0:00"}


def test_a_listener_that_is_gone_does_not_stop_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with make_progress(Console(file=Gone()), interval=0.02) as progress:
        task = progress.add_task("quantizing", total=4)
        time.sleep(0.1)
        progress.advance(task, 4)


def test_every_long_command_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each phase is slowed down until a line is due."""
    from conftest import ROOT
    from fairy2i_export.commands.export import main as export_main
    from fairy2i_export.commands.tools import main
    from runtime_models import stories_folder

    monkeypatch.setattr(progress_module, "INTERVAL", 0.01)
    advance = progress_module._Display.advance
    monkeypatch.setattr(progress_module._Display, "advance", lambda *how: (time.sleep(0.03), advance(*how))[1])
    source = str(ROOT / "examples" / "models" / "stories260K-fairy2i-w2")
    text = str(ROOT / "examples" / "data" / "tinystories" / "tinystories_sample.txt")
    folder = str(stories_folder())
    for program, arguments, expected in (
        (export_main, [source, "-o", str(tmp_path / "a")], "quantizing: "),
        (export_main, [f"{folder}/model.onnx", "-o", str(tmp_path / "b"), "--dry-run"], ""),
        (main, ["ppl", folder, "--text", text, "--tokens", "600"], "model: "),
        (main, ["bench", folder, "--repeat", "2", "--new-tokens", "2"], "measuring: "),
        (main, ["verify", folder], "layers: "),
        (main, ["report", folder, "--against", source, "--no-torch", "-o", str(tmp_path / "r.html")], "report: "),
    ):
        assert program(arguments) == 0
        assert expected in capsys.readouterr().err, arguments
    assert export_main([source, "-o", str(tmp_path / "c"), "--quiet"]) == 0
    assert "quantizing" not in capsys.readouterr().err
