"""What was said in earlier chats, for the terminal's Up key: a private file of a limited size in the user's state folder."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

from fairy2i_runtime.errors import Fairy2iWarning

VARIABLE = "FAIRY2I_HISTORY"
ENTRIES = 500
LONGEST = 4000  # characters of an entry; longer ones were pasted
_SLACK = 2  # the file is cut once it is so many times too long


def history_file() -> Path | None:
    """The file: the one that FAIRY2I_HISTORY names, none if that is empty, else one in the user's state folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        if chosen and Path(chosen).is_dir():
            message = f"{VARIABLE}: expected the name of a file, found the folder {chosen}: nothing of this chat is kept"
            warnings.warn(message, Fairy2iWarning, stacklevel=2)
            return None
        return Path(chosen) if chosen else None
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # no home
        return None
    return Path(state) / "fairy2i" / "chat_history"


class History:
    """A file with one entry a line, each as a JSON string, since entries may have several lines.

    Only its owner may read it. Entries are appended one by one, so that chats at the same time do not lose each other's.
    Where the file cannot be read or written there is no history, and nothing else is different.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[str]:
        """The latest entries, oldest first."""
        try:
            if not self.path.is_file():  # a pipe or a device would be waited for
                return []
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        if len(lines) > _SLACK * ENTRIES:
            self._rewrite(entries[-ENTRIES:])
        return entries[-ENTRIES:]

    def add(self, text: str) -> None:
        """Append an entry. Long ones, and those that begin with a space, are not kept."""
        if text.startswith(" ") or not _is_plain(text):
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                return
            self._write(self.path, os.O_APPEND, [text])
        except OSError:
            return

    def _rewrite(self, entries: list[str]) -> None:
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self._write(new, os.O_TRUNC, entries)
            new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)

    def _write(self, path: Path, flag: int, entries: list[str]) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))


def _entry(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, str) and _is_plain(entry) else None


def _is_plain(text: str) -> bool:
    """Whether it is no more than text: what controls a terminal has no place in what is typed into it."""
    return len(text) <= LONGEST and all(character.isprintable() or character in "\n\t" for character in text)
