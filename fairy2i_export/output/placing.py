"""Finished work gets its name here: a rename that replaces nothing but an earlier result, however late something else appears."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fairy2i_export.errors import OutputError
from fairy2i_export.output.contents import foreign_names, is_export, remove_export
from fairy2i_export.output.disk.exchange import exchanged
from fairy2i_export.output.disk.own_files import sync_names


def place_folder(finished: Path, out: Path, aside: Path, *, force: bool, markers: tuple[str, ...]) -> None:
    """Rename a finished folder to ``out``, where nothing, an empty folder or, with ``force``, an earlier export may lie.

    Whenever the process is killed, the earlier or the new one is whole; :func:`recover` puts right what is left then.

    Args:
        finished: the folder, whose files are on the disk already.
        out: the name.
        aside: a free name beside ``finished``, for an earlier export where the system cannot exchange two folders.
        force: replace an earlier export.
        markers: files that make a folder recognizable as one.

    Raises:
        OutputError: something else lies there now; both it and the finished folder stay.
        OSError: the system does not let us.
    """
    if force and is_export(out, markers):
        _replace_export(finished, out, aside, markers)
    elif not _renamed(finished, out):
        hint = "" if force else "; --force replaces an earlier export, nothing else"
        raise OutputError(f"{out}: something else was put there meanwhile, and it is left as it is{hint}")
    sync_names(out.parent)


def identity_of(folder: Path) -> str:
    """What tells a folder from others, whatever it is called; empty if there is none."""
    try:
        status = folder.lstat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def recover(finished: Path, out: Path, aside: Path, identity: str) -> bool:
    """Complete what :func:`place_folder` was killed in.

    Args:
        finished: as there.
        out: as there.
        aside: as there.
        identity: of the finished folder when it was to be placed.

    Returns:
        Whether the finished folder has left its place: it got its name, or somebody moved it.

    Raises:
        OutputError: nobody but the user can tell which of two folders is to have the name.
    """
    placed = bool(identity) and identity_of(out) == identity
    if os.path.lexists(aside):
        if placed:
            _remove_earlier(aside, out)
        elif not os.path.lexists(out):
            os.rename(aside, out)
        else:
            raise OutputError(
                f"{out}: something else was put there while {aside} was replaced, which is kept; move one of them"
            )
    if placed and finished.is_dir():
        _remove_earlier(finished, out)
    return placed or not finished.is_dir()


def _renamed(folder: Path, out: Path) -> bool:
    """Rename a folder to a name that is free or an empty folder's; whether it was."""
    if os.name == "nt":  # where a rename replaces nothing at all
        with suppress(OSError):
            out.rmdir()
    try:
        os.rename(folder, out)  # POSIX: fails if a file, a link or a folder with anything in it has the name
    except OSError:
        if os.path.lexists(out):
            return False
        raise
    return True


def _replace_export(finished: Path, out: Path, aside: Path, markers: tuple[str, ...]) -> None:
    """The earlier export is looked at where nobody adds to it, before any of it is removed."""
    if exchanged(finished, out):
        try:
            check_replaceable(finished, markers, out)
        except BaseException as error:
            if not exchanged(finished, out):
                raise OutputError(f"{out}: is the new export, and what was there before is kept in {finished}") from error
            raise
        sync_names(out.parent)
        _remove_earlier(finished, out)
        return
    try:
        os.rename(out, aside)
        check_replaceable(aside, markers, out)
        if not _renamed(finished, out):
            raise OutputError(f"{out}: something else was put there meanwhile, and it is left as it is")
    except BaseException as error:
        if os.path.lexists(aside) and not _renamed(aside, out):
            raise OutputError(f"{out}: something else was put there meanwhile; the earlier export is in {aside}") from error
        raise
    sync_names(out.parent)
    _remove_earlier(aside, out)


def _remove_earlier(earlier: Path, out: Path) -> None:
    """Remove a replaced export; if somebody was inside and added a file, that stays, in a folder of its own beside ``out``."""
    remove_export(earlier)
    if earlier.exists():
        os.rename(earlier, Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name)


def check_replaceable(folder: Path, markers: tuple[str, ...], out: Path) -> None:
    """Raise OutputError unless a folder, of which messages speak as ``out``, is an earlier export without files of others."""
    if not is_export(folder, markers):
        raise OutputError(
            f"{out}: exists already and is no earlier export (no {' or '.join(markers)} in it), so --force does not replace it; "
            "choose another folder or remove it yourself"
        )
    if names := foreign_names(folder):
        raise OutputError(
            f"{out}: exists already and holds what no export has written ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}), so --force does not replace it; move that elsewhere, or choose another folder"
        )


def place_file(finished: Path, path: Path, replaceable: Callable[[Path], bool]) -> bool:
    """Rename a finished file to ``path``, where nothing or an earlier result may lie; whether that was so.

    Raises:
        OSError: the system does not let us.
    """
    try:
        os.link(finished, path)  # unlike a rename, this fails if the name is taken
    except OSError:  # taken, or a file system without hard links
        if os.path.lexists(path) and not replaceable(path):
            return False
        os.replace(finished, path)
    else:
        finished.unlink()
    return True


def free_name(path: Path) -> Path:
    """A name like that of ``path`` that nothing has."""
    number = 2
    while os.path.lexists(free := path.with_name(f"{path.name}-{number}")):
        number += 1
    return free


def move_command(source: Path, to: Path) -> str:
    """What to type to give something another name."""
    return f"mv {shlex.quote(str(source))} {shlex.quote(str(to))}"
