"""The output folder appears complete or not at all: everything is written to a temporary sibling and renamed at the end.

For an output DIR the sibling is .DIR.partial with the future folder and the journal in it. It goes away when the export
fails; after an interruption it stays, for the next run to continue. It also stays if the finished folder cannot be put in its
place because something else has the name by then: the next run of the same command goes on from there, and no other clears it
away. One with a link in it, or of another user, is refused: it may have come with the checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fairy2i_export.errors import OutputError
from fairy2i_export.output.contents import EXPORT_MARKERS, foreign_names
from fairy2i_export.output.data_file import MODEL
from fairy2i_export.output.disk.held_signals import HeldSignals, signals_held
from fairy2i_export.output.disk.own_files import check_own, sync_folder
from fairy2i_export.output.journal import Journal
from fairy2i_export.output.placing import free_name, identity_of, move_command, place_folder, recover
from fairy2i_export.output.target import check_free, make_parents

_FOLDER, _JOURNAL, _CALIBRATED, _FINISHED, _LOCK = "folder", "journal", "calibrated", "finished", "lock"
_EARLIER = "earlier"  # an export that is being replaced, where the system cannot exchange folders
_STAGES = "stages.json"
_OURS = {_FOLDER, _JOURNAL, _CALIBRATED, _FINISHED, _EARLIER, _LOCK, _STAGES, f"{_STAGES}.new"}


@dataclass(frozen=True)
class Workspace:
    """Where an export works until it is finished.

    Attributes:
        folder: becomes the output folder.
        journal: what has been done in it.
        calibrated: where calibrated layers are kept until the export is complete; may not exist.
        stages: where it is kept, until the export is complete, which layers get how many stages; may not exist.
        lock: held against a second export into the same folder.
    """

    folder: Path
    journal: Journal
    calibrated: Path
    stages: Path
    lock: FileLock

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run finished the folder and could not put it in its place."""
        return (self.folder.parent / _FINISHED).exists() and (self.folder / MODEL).is_file()

    @property
    def is_placing(self) -> bool:
        """Whether a finished folder, or what it is to replace, is still here."""
        return (self.folder.parent / _FINISHED).exists() and self.folder.exists()

    @property
    def has_results(self) -> bool:
        """Whether there is anything that another run need not do again."""
        return bool(self.journal.tensors) or self.stages.exists() or any(self.calibrated.glob("*.safetensors"))

    def resume(self, expected: Mapping[str, str]) -> str | None:
        """Take up the journal, as :meth:`Journal.resume`.

        Raises:
            OutputError: the folder holds a finished model that was made from or with something else.
        """
        if self.is_finished and not self.journal.belongs_to(expected):
            raise OutputError(
                f"{self.folder}: holds the finished model of another command, which could not be put in its place; move it away "
                f"({move_command(self.folder, free_name(_out_of(self.folder)))}) or remove it"
            )
        return self.journal.resume(expected)

    def clear(self, *, but: str | None = None) -> None:
        """Remove what an earlier run left in the folder, apart from one file where its contents will be checked."""
        (self.folder.parent / _FINISHED).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != but:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start_over(self, identity: Mapping[str, str]) -> None:
        """Remove all of an earlier run, for output that is made in one go; errors as :meth:`resume`."""
        self.resume(identity)
        if foreign := foreign_names(self.folder):
            raise OutputError(
                f"{self.folder}: holds what no export has written ({', '.join(foreign[:5])}); move that elsewhere, then run the "
                "same command again"
            )
        self.journal.discard()
        self.journal.resume(identity)
        shutil.rmtree(self.calibrated, ignore_errors=True)
        self.stages.unlink(missing_ok=True)
        self.clear()

    def place(self, out: Path, force: bool, markers: tuple[str, ...], held: HeldSignals) -> None:
        """Give the finished folder its name; signals are heeded until its files are on the disk.

        Raises:
            OutputError: something else has it, or the system does not let us; the finished folder stays here then.
        """
        finished = self.folder.parent / _FINISHED
        finished.write_text(identity_of(self.folder), encoding="ascii")
        try:
            with held.heeded():
                sync_folder(self.folder)
            place_folder(self.folder, out, finished.with_name(_EARLIER), force=force, markers=markers)
        except (OutputError, OSError) as error:
            why = error if isinstance(error, OutputError) else f"{out}: cannot be written: {error.strerror or error}"
            raise OutputError(
                f"{why}. The finished model is kept in {self.folder}; to have it under another name: "
                f"{move_command(self.folder, free_name(out))}; or make room and run the same command again"
            ) from error

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
    the exception says so. A finished folder whose place is taken stays too.

    Args:
        out: the folder to make; missing parents are made too.
        force: replace an earlier export there, once the new one is complete.
        source: the checkpoint directory or model file, which must never be replaced.
        markers: files that make a folder recognizable as an earlier export.

    Raises:
        OutputError: ``out`` exists (without force, or is no earlier export), at the beginning or at the end; is being written by
            another process; or cannot be written.
    """
    check_free(out, force, source, markers)
    out = Path(os.path.realpath(out))
    placed = False
    try:
        with signals_held() as held, _workspace(out) as workspace:
            with held.heeded():
                check_free(out, force, source, markers)  # again: an earlier export may have been put back
                yield workspace
            workspace.place(out, force, markers, held)
            placed = True
    except (KeyboardInterrupt, SystemExit) as stop:
        if placed:
            stop.add_note(f"interrupted: the model itself is complete: {out}")
        raise


@contextmanager
def _workspace(out: Path) -> Iterator[Workspace]:
    """Make a workspace, or take up one that is there; in the end it is removed unless there is something in it to keep."""
    made = make_parents(out.parent)
    workspace: Workspace | None = None
    keep = False
    try:
        workspace = _open_workspace(out)
        yield workspace
        made = []
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        if workspace is not None and (workspace.has_results or workspace.is_placing):
            keep = True
            stop.add_note(f"interrupted: what is finished stays in {workspace.folder.parent}; the same command continues it")
        raise
    finally:
        if workspace is not None:
            keep = keep or workspace.is_placing
            if os.name == "nt":  # open files cannot be removed there
                workspace.close()
            if not keep:
                _remove(workspace.folder.parent)
            workspace.close()
        for parent in [] if keep else made:
            with suppress(OSError):
                parent.rmdir()


def partial_folder(out: Path) -> Path:
    """Where an unfinished export to ``out`` lies."""
    return out.parent / f".{out.name}.partial"


def working_folder(out: Path) -> Path:
    """In it, what is to become ``out``."""
    return partial_folder(out) / _FOLDER


def _out_of(folder: Path) -> Path:
    """The output that a workspace's folder is to become."""
    partial = folder.parent
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


def _open_workspace(out: Path) -> Workspace:
    partial = partial_folder(out)
    while True:
        if not os.path.lexists(partial):
            partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_partial(partial)
        try:
            journal = Journal(partial / _JOURNAL)
        except FileNotFoundError:  # another export has just removed the workspace
            continue
        try:
            lock = _locked(partial)
        except BaseException:
            journal.close()
            raise
        if journal.is_at(partial / _JOURNAL):
            break
        journal.close()  # removed before we had the lock
        lock.release()
    try:
        _recover(partial, out, journal)
        (partial / _FOLDER).mkdir(exist_ok=True)
    except BaseException:
        journal.close()
        lock.release()
        raise
    return Workspace(partial / _FOLDER, journal, partial / _CALIBRATED, partial / _STAGES, lock)


def _recover(partial: Path, out: Path, journal: Journal) -> None:
    """Put right what a run left that was killed while it put its folder in place."""
    finished = partial / _FINISHED
    if not finished.exists():
        return
    if recover(partial / _FOLDER, out, partial / _EARLIER, finished.read_text(encoding="ascii", errors="replace")):
        journal.discard()
        for path in [*partial.iterdir()]:
            if path.name not in (_LOCK, _JOURNAL):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove(partial: Path) -> None:
    """Remove a workspace, its lock last: who finds the lock finds it locked, who does not begins anew."""
    for path in [*partial.iterdir()]:
        if path.name != _LOCK:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with suppress(OSError):
        (partial / _LOCK).unlink(missing_ok=True)
        partial.rmdir()


def _check_partial(partial: Path) -> None:
    if os.path.lexists(partial):
        ours = partial.is_dir() and not partial.is_symlink()
        if not ours or not {path.name for path in partial.iterdir()} <= _OURS:
            raise OutputError(f"{partial}: exists and is no unfinished export; remove it, or choose another folder")
        check_own(partial)


def _locked(partial: Path) -> FileLock:
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{partial}: another export into this folder is running; wait, or choose another") from error
    return lock


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
