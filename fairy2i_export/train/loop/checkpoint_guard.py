"""Checkpoints that are whole or not there: written under another name, listed, renamed; and the choice of the last good one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from fairy2i_runtime.regular_file import read_json_value

MANIFEST = "manifest.json"  # the last file of a checkpoint: names and sizes of all others
_STAGING = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")


def staging(directory: Path) -> Path:
    """Where a checkpoint is written before it counts."""
    return directory / _STAGING


def seal(directory: Path, step: int) -> Path:
    """Make the staged checkpoint of a step count: write its list of files, force all to the disk, rename it.

    Raises:
        OSError: the disk is full or fails; the staged files then still do not count.
    """
    staged = staging(directory) / f"checkpoint-{step}"
    sizes = {str(path.relative_to(staged)): path.stat().st_size for path in sorted(staged.rglob("*")) if path.is_file()}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": sizes}, indent=1), encoding="utf-8")
    for path in staged.rglob("*"):
        if path.is_file():
            _sync(path)
    final = directory / staged.name
    if final.exists():  # a damaged one of the same step
        shutil.rmtree(final)
    os.replace(staged, final)
    _sync(directory)
    discard(directory)
    return final


def discard(directory: Path) -> None:
    """Remove what is staged."""
    shutil.rmtree(staging(directory), ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: no checkpoint folder")
    return int(match[1])


def good_checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and _is_whole(path)]
    return sorted(found, key=step_of)


def what_is_kept(directory: Path) -> str:
    """For error messages: the last whole checkpoint."""
    good = good_checkpoints(directory)
    return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"


def damaged_checkpoints(directory: Path) -> list[Path]:
    """Folders that are named like checkpoints but lack files or parts of files."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and not _is_whole(path))


def rotate(directory: Path, keep: int, also: int | None = None) -> None:
    """Remove all but the newest ``keep`` whole checkpoints and that of the step ``also``."""
    for path in good_checkpoints(directory)[:-keep]:
        if step_of(path) != also:
            # first out of the way, so that an interruption leaves no half of it under a good name
            shutil.rmtree(staging(directory), ignore_errors=True)
            os.replace(path, staging(directory))
            shutil.rmtree(staging(directory), ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = read_json_value(checkpoint / MANIFEST)["files"]
        return bool(files) and all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sync(path: Path) -> None:
    """Force a file or folder to the disk, where the system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
