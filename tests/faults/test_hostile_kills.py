"""An export that is killed at any moment of its last step leaves the earlier or the new one, whole, and the next one cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.errors import OutputError
from fairy2i_export.output import placing
from fairy2i_export.output.disk.exchange import exchanged
from fairy2i_export.output.workspace import output_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
FILES = ("model.onnx", "model.onnx.data", "genai_config.json", "README.md")
STEPS = ("rename", "unlink", "rmdir", "mkdir", "replace")  # of the system's calls, those that change names


def write(out: Path, version: str, force: bool) -> None:
    """What an export does with its folders, with small files."""
    identity = {"tool": "1", "codes": "1", "source": version, "options": "none"}
    with output_folder(out, force=force, source=out.parent / "source") as workspace:
        workspace.start_over(identity)
        for name in FILES:
            (workspace.folder / name).write_text(version)
        workspace.journal.finished_tensor("a", "digest", {}, None)


def in_a_child(work: Callable[[], Any], kill_after: int, exchange: bool) -> bool:
    """Whether the work was finished, in a process that is killed after so many changes of names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, none of which is needed there
        child = os.fork()
    if child == 0:
        count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal count
                result = real(*args, **options)
                count += 1
                if count == kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        try:
            for name in STEPS:
                setattr(os, name, counted(getattr(os, name)))
            placing.exchanged = counted(exchanged) if exchange else lambda a, b: False
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def version_of(out: Path) -> str:
    (version,) = {(out / name).read_text() for name in FILES}
    return version


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("then", ["the same again", "another", "without --force"])
def test_kills_at_every_change_of_a_name(tmp_path: Path, earlier: bool, exchange: bool, then: str) -> None:
    if exchange and not can_exchange(tmp_path):
        pytest.skip("this file system does not exchange folders")
    for kill_after in range(1, 100):
        place = tmp_path / str(kill_after)
        place.mkdir()
        out = place / "out"
        if earlier:
            write(out, "old", False)
        finished = in_a_child(lambda out=out: write(out, "new", True), kill_after, exchange)  # type: ignore[misc]
        if finished:
            assert sorted(path.name for path in place.iterdir()) == ["out"]
            break
        if out.exists():
            assert version_of(out) in ("old", "new")
        else:
            assert not (earlier and exchange)
        if then == "without --force":
            there = out.exists() or (place / ".out.partial" / "earlier").exists()
            if there:
                with pytest.raises(OutputError, match="exists already"):
                    write(out, "third", False)
                assert version_of(out) in ("old", "new")
            write(out, "third", True) if not (place / ".out.partial" / "finished").exists() else write_again(out)
            continue
        version = "new" if then == "the same again" else "third"
        if version == "third" and is_waiting(place):
            with pytest.raises(OutputError, match="holds the finished model of another command"):
                write(out, version, True)
            assert not earlier or version_of(out) == "old"  # put back, where it had been moved
            version = "new"
        write(out, version, True)
        assert version_of(out) == version
        assert sorted(path.name for path in place.iterdir()) == ["out"], kill_after
    assert kill_after > 5


def is_waiting(place: Path) -> bool:
    """Whether a finished folder was not put in its place."""
    partial = place / ".out.partial"
    folder, finished = partial / "folder", partial / "finished"
    return (folder / "model.onnx").is_file() and finished.exists() and finished.read_text() == placing.identity_of(folder)


def write_again(out: Path) -> None:
    write(out, "new", True)
    assert version_of(out) == "new"


def can_exchange(folder: Path) -> bool:
    a, b = folder / "a", folder / "b"
    a.mkdir()
    b.mkdir()
    (a / "of a").touch()
    done = exchanged(a, b)
    assert (b / "of a").exists() == done
    for path in (a / "of a", b / "of a"):
        path.unlink(missing_ok=True)
    a.rmdir()
    b.rmdir()
    return done


COMMAND = """
import os, signal, sys
from fairy2i_export import export
from fairy2i_export.output import placing, workspace

source, out, point = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def and_die(real):
    return lambda *args, **options: (real(*args, **options), die())
if point == "before":
    placing.exchanged = die
elif point == "after":
    placing.exchanged = and_die(placing.exchanged)
elif point == "between":
    placing.exchanged, placing._renamed = (lambda a, b: False), die
elif point == "flushing":
    workspace.sync_folder = die
export(source, out, force=True)
"""


@pytest.mark.parametrize("point", ["flushing", "before", "after", "between"])
def test_a_killed_replacement_is_completed_with_the_same_bytes(tmp_path: Path, point: str) -> None:
    source, out = make_checkpoint(tmp_path / "model"), tmp_path / "out"
    export(source, out, stages=1)
    reference = export(source, tmp_path / "reference").path
    process = subprocess.run([sys.executable, "-c", COMMAND, str(source), str(out), point], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".out.partial").is_dir()
    export(source, out, force=True)
    for name in ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "reference"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append(f"rename {b}"), rename(a, b)))
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("nothing tells which file is flushed")
    write(tmp_path / "out", "new", False)
    named = order.index(f"rename {tmp_path / 'out'}")
    folder = tmp_path / ".out.partial" / "folder"
    assert {str(folder), *(str(folder / name) for name in FILES)} <= set(order[:named])
    assert str(tmp_path) in order[named:]
