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


def place_folder(finished: Path, out: Path, *, force: bool, markers: tuple[str, ...]) -> None:
    """Rename a finished folder to ``out``, where nothing, an empty folder or, with ``force``, an earlier export may lie.

    Raises:
        OutputError: something else lies there now; both it and the finished folder stay.
        OSError: the system does not let us.
    """
    if force and is_export(out, markers):
        _replace_export(finished, out, markers)
    elif not _renamed(finished, out):
        hint = "" if force else "; --force replaces an earlier export, nothing else"
        raise OutputError(f"{out}: something else was put there meanwhile, and it is left as it is{hint}")


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


def _replace_export(finished: Path, out: Path, markers: tuple[str, ...]) -> None:
    """The earlier export is moved aside and looked at there, where nobody adds to it, before any of it is removed."""
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    earlier = aside / out.name
    try:
        out.rename(earlier)
        check_replaceable(earlier, markers, out)
        if not _renamed(finished, out):
            raise OutputError(f"{out}: something else was put there meanwhile, and it is left as it is")
    except BaseException as error:
        if earlier.is_dir() and not _renamed(earlier, out):
            raise OutputError(
                f"{out}: something else was put there meanwhile; the earlier export is in {earlier}"
            ) from error
        aside.rmdir()
        raise
    remove_export(earlier)
    with suppress(OSError):  # not empty: somebody was inside and added a file
        aside.rmdir()


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
