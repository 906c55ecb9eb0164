"""A signal at any line of what makes an output folder leaves the model whole or not there, and says which of the two."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import pytest

from fairy2i_export.commands import report, tokenizer_onnx
from fairy2i_export.onnx_graph.tokenizer import write
from fairy2i_export.output import placing, workspace
from fairy2i_export.output.contents import EXPORT_MARKERS
from fairy2i_export.output.disk import held_signals, own_files
from fairy2i_export.output.disk.held_signals import signals_held
from fairy2i_export.output.workspace import output_folder, partial_folder
from fairy2i_runtime.commands.process.streams import Output, note_done

IDENTITY = {"tool": "1", "codes": "1", "source": "s", "options": "none"}
MODULES = (workspace, placing, own_files, held_signals, report, tokenizer_onnx, write)
WATCHED = {str(module.__file__) for module in MODULES}


class AtLine:
    """Raises a signal at the n-th line that is run of :func:`make` and the files that it uses."""

    def __init__(self, number: signal.Signals, line: int) -> None:
        self.number, self.line, self.lines, self.where = number, line, 0, ""

    def __enter__(self) -> AtLine:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        return self._traced if code.co_filename in WATCHED or code is make.__code__ else None

    def _traced(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                signal.raise_signal(self.number)
        return self._traced


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What a program has (startup.py) in place of what the test runner has."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def make(out: Path, version: str, *, results: bool, force: bool) -> None:
    with output_folder(out, force=force, source=out.parent.parent / "source") as made:
        made.start_over(IDENTITY)
        for name in EXPORT_MARKERS:
            (made.folder / name).write_text(version)
        if results:
            made.journal.finished_tensor("a", "digest", {}, None)


def interrupted(number: signal.Signals, line: int, work: Callable[[], None]) -> tuple[SystemExit | None, AtLine]:
    at_line = AtLine(number, line)
    try:
        with at_line:
            work()
    except SystemExit as stop:
        return stop, at_line
    return None, at_line


def contents(out: Path) -> set[str]:
    return {path.read_text() for path in out.iterdir()} if out.exists() else set()


@pytest.mark.parametrize("results", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("exchange", [True, False])
def test_a_signal_at_any_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, results: bool, exchange: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it takes most of the time, and only matters when power fails
    if not exchange:
        monkeypatch.setattr(placing, "exchanged", lambda a, b: False)
    told = {"complete": 0, "stays in": 0, "": 0}
    line = 0
    while True:
        line += 1
        out = tmp_path / str(line) / "deep" / "out"
        if earlier:
            make(out, "old", results=False, force=False)
        stop, at_line = interrupted(signal.SIGTERM, line, partial(make, out, "new", results=results, force=earlier))
        if stop is None:
            assert at_line.lines < line, "a signal was lost"
            break
        print(at_line.where)  # of the last one, should what follows fail
        notes = " ".join(getattr(stop, "__notes__", ()))
        assert stop.code == 128 + signal.SIGTERM
        assert ("complete: " in notes) == (contents(out) == {"new"})
        assert contents(out) in ({"new"}, {"old"} if earlier else set())
        assert ("stays in" in notes) == partial_folder(out).exists()
        assert earlier or notes or not out.parent.exists()  # no parents are left either
        told[next(word for word in told if word in notes)] += 1
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)  # is not held any more
        make(out, "again", results=results, force=True)
        assert contents(out) == {"again"}
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert line > 100
    assert told["complete"]
    assert told[""]
    assert told["stays in"]


def test_a_signal_waits_for_the_steps() -> None:
    done = []

    def steps() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("step")

    with pytest.raises(SystemExit) as stop:
        steps()
    assert (done, stop.value.code) == (["step"], 128 + signal.SIGINT)  # the first one
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_is_heeded_where_it_may_be(before: bool) -> None:
    done = []

    def steps() -> None:
        with signals_held() as held:
            if before:
                signal.raise_signal(signal.SIGINT)
            done.append("held")
            with held.heeded():
                if not before:
                    signal.raise_signal(signal.SIGINT)
                done.append("heeded")

    with pytest.raises(SystemExit):
        steps()
    assert done == ["held"]


def test_what_has_no_handler_of_ours_is_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with signals_held():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # somebody changes their mind meanwhile
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the program's last word on an interruption (startup.py) says which of the two."""
    monkeypatch.setattr(Output, "done", "")
    line, stop = 0, None
    while line == 0 or stop is not None:
        line, page = line + 1, tmp_path / str(line) / "report.html"
        page.parent.mkdir()
        note_done("")
        stop, _ = interrupted(signal.SIGTERM, line, partial(report.write_file, page, "<!DOCTYPE html>"))
        assert [path.name for path in page.parent.iterdir()] == (["report.html"] if Output.done else [])
        assert not Output.done or page.read_text() == "<!DOCTYPE html>"
    assert line > 20


def test_graphs_of_a_tokenizer_are_both_new_or_both_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = (write.TokenizerGraphs(model(f"{age} 1"), model(f"{age} 2"), texts=1) for age in ("old", "new"))
    monkeypatch.setattr(write, "make_tokenizer_graphs", lambda folder: newer)
    (tmp_path / "tokenizer.json").write_text("{}")
    line, stop, seen = 0, None, set()
    while line == 0 or stop is not None:
        line += 1
        older.write(tmp_path)
        stop, _ = interrupted(signal.SIGTERM, line, partial(tokenizer_onnx.tokenizer_onnx_command, tmp_path))
        found = [onnx.load(tmp_path / name) for name in (write.TOKENIZER, write.DETOKENIZER)]
        assert found in ([graphs.encode, graphs.decode] for graphs in (older, newer))
        assert len(list(tmp_path.iterdir())) == 3
        seen.add(found[0].producer_name)
    assert seen == {"old 1", "new 1"}


def model(name: str) -> onnx.ModelProto:
    """What is known as a graph of ours."""
    made = onnx.ModelProto(producer_name=name)
    made.metadata_props.add(key="fairy2i.tokenizer_kind", value="x")
    return made
