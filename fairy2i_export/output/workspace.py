"""The output folder appears complete or not at all: everything is written to a temporary sibling and renamed at the end.

For an output DIR the sibling is .DIR.partial with the future folder and the journal in it. It goes away when the export
fails; after an interruption it stays, for the next run to continue.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fairy2i_export.errors import OutputError
from fairy2i_export.output.journal import Journal

EXPORT_MARKERS = ("model.onnx", "genai_config.json")  # what makes a folder recognizable as an earlier export
REWRITE_MARKERS = ("model.onnx", "rewrite.json")  # the same for the output of fairy2i_export.rewrite
_FOLDER, _JOURNAL, _CALIBRATED, _LOCK = "folder", "journal", "calibrated", "lock"


@dataclass(frozen=True)
class Workspace:
    """Where an export works until it is finished.

    Attributes:
        folder: becomes the output folder.
        journal: what has been done in it.
        calibrated: where calibrated layers are kept until the export is complete; may not exist.
        lock: held against a second export into the same folder.
    """

    folder: Path
    journal: Journal
    calibrated: Path
    lock: FileLock

    def clear(self) -> None:
        """Remove what an earlier run left in the folder."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def discard(self) -> None:
        """Remove all of an earlier run, for output that is made in one go and not continued."""
        self.journal.discard()
        shutil.rmtree(self.calibrated, ignore_errors=True)
        self.clear()

    def close(self) -> None:
        """Close the journal and let others in."""
        self.journal.close()
        self.lock.release()


@contextmanager
def output_folder(
    out: Path,
    *,
    force: bool,
    source: Path,
    markers: tuple[str, ...] = EXPORT_MARKERS,
) -> Iterator[Workspace]:
    """Yield a workspace beside ``out``; rename its folder to ``out`` on success, remove it on any failure.

    An interruption (Ctrl-C, a signal) is no failure: if tensors are finished, the workspace stays for the next run, and a note on
    the exception says so.

    Args:
        out: the folder to make; missing parents are made too.
        force: replace an earlier export there, once the new one is complete.
        source: the checkpoint directory or model file, which must never be replaced.
        markers: files that make a folder recognizable as an earlier export.

    Raises:
        OutputError: ``out`` exists (without force, or is no earlier export), is being written by another process, or cannot
            be written.
    """
    check_free(out, force, source, markers)
    out = Path(os.path.realpath(out))
    made = _make_parents(out.parent)
    workspace: Workspace | None = None
    keep = False
    try:
        try:
            workspace = _open_workspace(out)
            yield workspace
            _move_into_place(workspace.folder, out)
            made = []
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        if workspace is not None and (workspace.journal.tensors or any(workspace.calibrated.glob("*.safetensors"))):
            keep = True
            stop.add_note(f"interrupted: what is finished stays in {workspace.folder.parent}; the same command continues it")
        raise
    finally:
        if workspace is not None:
            if os.name == "nt":  # open files cannot be removed there
                workspace.close()
            if not keep:
                shutil.rmtree(workspace.folder.parent, ignore_errors=True)
            workspace.close()
        for parent in [] if keep else made:
            with suppress(OSError):
                parent.rmdir()


def partial_folder(out: Path) -> Path:
    """Where an unfinished export to ``out`` lies."""
    return out.parent / f".{out.name}.partial"


def _open_workspace(out: Path) -> Workspace:
    partial = partial_folder(out)
    _check_partial(partial)
    (partial / _FOLDER).mkdir(parents=True, exist_ok=True)
    return Workspace(partial / _FOLDER, Journal(partial / _JOURNAL), partial / _CALIBRATED, _locked(partial))


def _check_partial(partial: Path) -> None:
    if os.path.lexists(partial):
        ours = partial.is_dir() and not partial.is_symlink()
        if not ours or not {path.name for path in partial.iterdir()} <= {_FOLDER, _JOURNAL, _CALIBRATED, _LOCK}:
            raise OutputError(f"{partial}: exists and is no unfinished export; remove it, or choose another folder")


def _locked(partial: Path) -> FileLock:
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{partial}: another export into this folder is running; wait, or choose another") from error
    return lock


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError if the file system has fewer than ``needed`` bytes free for ``out``.

    What an unfinished export to ``out`` takes already counts as free.
    """
    place = Path(os.path.realpath(out)).parent
    while not place.exists():
        place = place.parent
    taken = partial_folder(Path(os.path.realpath(out))) / _FOLDER
    free = shutil.disk_usage(place).free + (_bytes_taken(taken) if taken.is_dir() else 0)
    if free < needed:
        raise OutputError(f"{place}: the model needs about {needed:,} bytes, the disk has {free:,} free")


def _bytes_taken(folder: Path) -> int:
    """Of the files in a folder, without the holes of an unfinished data file."""
    return 512 * sum(getattr(path.stat(), "st_blocks", 0) for path in folder.iterdir())


def check_free(out: Path, force: bool, source: Path, markers: tuple[str, ...] = EXPORT_MARKERS) -> None:
    """Raise OutputError unless ``out`` may be written: it does not exist, or is an earlier export and ``force`` is given."""
    out, source = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(f"{out}: exists already; choose another folder, or --force to replace an earlier export")
    if source == out or out in source.parents:
        what = "model" if source.is_file() else "checkpoint"
        raise OutputError(f"{out}: holds the source {what} and is not replaced; choose another folder")
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is no folder; choose another name")
    if any(out.iterdir()) and not all((out / marker).is_file() for marker in markers):
        raise OutputError(
            f"{out}: is no earlier export (no {' or '.join(markers)} in it), so --force does not replace it; "
            "choose another folder or remove it yourself"
        )


def check_writable(out: Path) -> None:
    """Raise OutputError for what would keep :func:`output_folder` from beginning, without making or changing anything.

    Raises:
        OutputError: no folder can be made there, something else has the name of the unfinished export, or another process is
            writing one.
    """
    out = Path(os.path.realpath(out))
    place = out.parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{out.parent}: cannot be made: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written: no permission to write to {place}")
    partial = partial_folder(out)
    _check_partial(partial)
    if (partial / _LOCK).exists():
        _locked(partial).release()


def _make_parents(folder: Path) -> list[Path]:
    """Make missing parents; returns those made, innermost first."""
    missing = []
    current = folder
    while not current.exists():
        missing.append(current)
        current = current.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    return missing


def _move_into_place(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(old / out.name)
    try:
        temporary.rename(out)
    except OSError:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
