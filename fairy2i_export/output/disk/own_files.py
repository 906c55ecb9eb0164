"""What lies in a folder that this process did not make itself, and files that are opened without following a link.

An archive may bring the name of an unfinished export along, with a link in it to any file of whoever unpacks it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from fairy2i_export.errors import OutputError


def open_own(path: Path) -> BinaryIO:
    """Open a file for reading and writing, made if there is none.

    Raises:
        OutputError: something that is no regular file, or a file with another name too, has the name.
        OSError: the system does not let us.
    """
    if path.is_symlink():  # where the system cannot refuse it while opening
        raise OutputError(_words(path, "a link"))
    file = open(path, "r+b", opener=_open)  # noqa: SIM115  # in C: no signal comes between the descriptor and its file
    try:
        if problem := _problem(os.fstat(file.fileno())):
            raise OutputError(_words(path, problem))
    except BaseException:
        file.close()
        raise
    return file


def check_own(folder: Path, *, inside: bool = False) -> None:
    """Raise OutputError unless a folder is one of ours: the user's, with folders and files in it that have no other name.

    Files that another process removes meanwhile do not count. ``inside``: look at what is in the folder alone.
    """
    if inside:
        folder = folder.resolve()
    elif folder.is_symlink() or not folder.is_dir():
        raise OutputError(_words(folder, "a link" if folder.is_symlink() else "no folder"))
    pending, owner = [folder], _owner(folder)
    while pending:
        path = pending.pop()
        try:
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.extend(sorted(path.iterdir()))
        except FileNotFoundError:
            continue
        if (path != folder or not inside) and (problem := _problem(status, owner)):
            raise OutputError(_words(path, problem))


def sync_folder(folder: Path) -> None:
    """Have the system write all files of a folder to the disk, and the folder itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("r+b" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_names(path)


def sync_names(folder: Path) -> None:
    """The same for the names in a folder alone, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems do not offer it for folders
        pass
    finally:
        os.close(descriptor)


def _open(path: str, flags: int) -> int:
    flags = os.O_RDWR | os.O_CREAT
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    return os.open(path, flags, 0o666)


def _problem(status: os.stat_result, owner: int | None = None) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "a link"
    if not stat.S_ISDIR(status.st_mode):
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if status.st_nlink > 1:
            return "a file that has another name elsewhere (a hard link)"
    if owner is not None and status.st_uid != owner:
        return f"the property of another user ({status.st_uid}, expected {owner})"
    return ""


def _owner(folder: Path) -> int | None:
    """Whose the files are that this process makes there; None where the system has no owners."""
    if not hasattr(os, "geteuid"):
        return None
    user: int = os.geteuid()
    if folder.lstat().st_uid == user:
        return user
    try:
        with tempfile.TemporaryFile(dir=folder.parent) as file:  # some file systems say the same owner for all
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return user


def _words(path: Path, problem: str) -> str:
    return (
        f"{path}: is {problem}, which this program does not leave there; it is neither used nor changed: remove it, or choose "
        "another folder"
    )
