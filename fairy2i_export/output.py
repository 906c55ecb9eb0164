"""The output folder appears complete or not at all: everything is written to a temporary sibling and renamed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fairy2i_export.errors import OutputError

_MARKERS = ("model.onnx", "genai_config.json")  # what makes a folder recognizable as an earlier export
REWRITE_MARKERS = ("model.onnx", "rewrite.json")  # the same for the output of fairy2i_export.rewrite


@contextmanager
def output_folder(out: Path, *, force: bool, source: Path, markers: tuple[str, ...] = _MARKERS) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``; rename it to ``out`` on success, remove it on any failure.

    Args:
        out: the folder to make; missing parents are made too.
        force: replace an earlier export there, once the new one is complete.
        source: the checkpoint directory or model file, which must never be replaced.
        markers: files that make a folder recognizable as an earlier export.

    Raises:
        OutputError: ``out`` exists (without force, or is no earlier export), or cannot be written.
    """
    out = Path(os.path.realpath(out))
    _check_free(out, force, Path(os.path.realpath(source)), markers)
    made = _make_parents(out.parent)
    temporary: Path | None = None
    try:
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
            # mkdtemp makes private folders; the result shall have the permissions of any new folder
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o777 & ~mask)
            yield temporary
            _move_into_place(temporary, out)
            made = []
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def check_space(folder: Path, needed: int) -> None:
    """Raise OutputError if the file system of ``folder`` has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder.parent}: the model needs about {needed:,} bytes, the disk has {free:,} free")


def _check_free(out: Path, force: bool, source: Path, markers: tuple[str, ...]) -> None:
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
