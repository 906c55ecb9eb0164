"""Two folders change names in one step, where the system has such a step: nobody sees a moment without either."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_FDCWD = -100  # names are relative to the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def exchanged(a: Path, b: Path) -> bool:
    """Give each of two folders the other's name; whether that was done. Nothing has changed if it was not."""
    names = os.fsencode(a), os.fsencode(b)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # no C library to ask
        return False
    if (rename := getattr(libc, "renameat2", None)) is not None:  # Linux
        return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE)) == 0)
    if (rename := getattr(libc, "renamex_np", None)) is not None:  # macOS
        return bool(rename(*names, ctypes.c_uint(_EXCHANGE)) == 0)
    return False
