"""Whether an output fits on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fairy2i_export.errors import OutputError
from fairy2i_export.output.workspace import working_folder


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError if the file system has fewer than ``needed`` bytes free for ``out``.

    What an unfinished export to ``out`` takes already counts as free.
    """
    place = Path(os.path.realpath(out)).parent
    while not place.exists():
        place = place.parent
    taken = working_folder(Path(os.path.realpath(out)))
    free = shutil.disk_usage(place).free + (_bytes_taken(taken) if taken.is_dir() else 0)
    if free < needed:
        raise OutputError(f"{place}: the model needs about {needed:,} bytes, the disk has {free:,} free")


def _bytes_taken(folder: Path) -> int:
    """Of the files in a folder, without the holes of an unfinished data file."""
    return 512 * sum(getattr(path.lstat(), "st_blocks", 0) for path in folder.iterdir())
