"""Whether a folder may become the output: checked before any work, and again when it begins."""

from __future__ import annotations

import os
from pathlib import Path

from fairy2i_export.errors import OutputError
from fairy2i_export.output.contents import EXPORT_MARKERS
from fairy2i_export.output.placing import check_replaceable


def check_free(out: Path, force: bool, source: Path, markers: tuple[str, ...] = EXPORT_MARKERS) -> None:
    """Raise OutputError unless ``out`` may be written.

    It does not exist, is an empty folder, or is an earlier export, ``force`` is given and nobody else has put anything into it.
    """
    try:
        out, source = Path(os.path.realpath(out)), Path(os.path.realpath(source))
        if not os.path.lexists(out):
            return
        if source == out or out in source.parents:
            what = "model" if source.is_file() else "checkpoint"
            raise OutputError(f"{out}: holds the source {what} and is not replaced; choose another folder")
        if not out.is_dir():
            raise OutputError(f"{out}: exists and is no folder; choose another name")
        _check_renameable(out)
        if any(out.iterdir()):
            check_replaceable(out, markers, out)
            if not force:  # last: it is advised only where it helps
                raise OutputError(f"{out}: exists already; choose another folder, or --force to replace an earlier export")
    except OSError as error:
        raise OutputError(f"{out}: cannot be read: {error.strerror or error}") from error


def _check_renameable(out: Path) -> None:
    """Raise OutputError for a folder that exists and whose place no other one can take."""
    what = None
    if out == Path(os.path.realpath(os.curdir)):
        what = "is the folder you are in"
    elif os.path.ismount(out):
        what = "is a mount point"
    if what is not None:
        raise OutputError(
            f"{out}: {what}, and a finished model takes its folder's place as a whole; name a new folder in it"
        )


def default_target(name: str) -> Path:
    """The folder to write where nobody names one, in the current folder.

    Raises:
        OutputError: a link has the name, which could lead anywhere; who wants that can say so.
    """
    target = Path(f"{name}-fairy2i")
    if target.is_symlink():
        raise OutputError(f"{target}: is a link to {os.readlink(target)}; to write there, name it with -o, else remove it")
    return target


def make_parents(folder: Path) -> list[Path]:
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
