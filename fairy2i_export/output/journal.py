"""What an unfinished export has done already: one line of JSON per finished tensor, in a file beside the output.

The first line says what the export is made from; a journal with another first line is worth nothing. Lines are appended when
their tensor is complete, so a killed export loses the tensors it was working on and nothing else. A line that was cut off
ends the journal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fairy2i_export.output.disk.own_files import open_own
from fairy2i_runtime.regular_file import parse_json

JOURNAL_BYTES = 1 << 28  # bytes that are read: ten times what the largest models need
_FORMAT = "fairy2i-export journal 1"
# key of the first line -> why a journal with another value cannot be used
_DIFFERENCES = {
    "tool": "it is of another version",
    "codes": "the quantizer or the packer has changed",
    "source": "the checkpoint has changed",
    "options": "the options are others",
}


class Journal:
    """A journal that is open.

    Args:
        path: of the file; made if it does not exist.

    Attributes:
        tensors: finished tasks: id -> what :meth:`finished_tensor` was given.
        files: name -> SHA-256 of the source files read to the end.
    """

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, dict[str, Any]] = {}
        self.files: dict[str, str] = {}
        self._file: BinaryIO = open_own(path)

    def resume(self, expected: Mapping[str, str]) -> str | None:
        """Take up what is there, if it belongs to ``expected``.

        Returns:
            None if there is something to continue or nothing at all; else why what is there cannot be used.
        """
        lines = self._file.read(JOURNAL_BYTES).splitlines(keepends=True)
        if not lines:
            self._start(expected)
            return None
        head = _parse(lines[0])
        if head is None or head.get("journal") != _FORMAT:
            self._start(expected)
            return "its journal is damaged"
        for what, words in _DIFFERENCES.items():
            if head.get(what) != expected.get(what):
                self._start(expected)
                return words
        good = len(lines[0])
        for line in lines[1:]:
            entry = _parse(line)
            if entry is None or not _is_entry(entry):
                break
            if "file" in entry:
                self.files[entry["file"]] = entry["sha256"]
            else:
                self.tensors[entry["id"]] = entry
            good += len(line)
        self._file.seek(good)
        self._file.truncate()
        return None

    def belongs_to(self, expected: Mapping[str, str]) -> bool:
        """Whether what is there could be continued with ``expected``; nothing changes."""
        self._file.seek(0)
        head = _parse(self._file.readline()) or {}
        self._file.seek(0)
        return head.get("journal") == _FORMAT and all(head.get(what) == expected.get(what) for what in _DIFFERENCES)

    def is_at(self, path: Path) -> bool:
        """Whether the file still has that name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            return False

    def discard(self) -> None:
        """Forget what an earlier run noted: for output that is made in one go."""
        self._file.seek(0)
        self._file.truncate()
        self.tensors.clear()
        self.files.clear()

    def finished_tensor(self, task: str, digest: str, outputs: Mapping[str, Any], error: float | None) -> None:
        """Note a finished task: digest of its source, what was written where, the quantization error."""
        self.tensors[task] = {"id": task, "digest": digest, "outputs": dict(outputs), "error": error}
        self._append(self.tensors[task])

    def finished_file(self, name: str, sha256: str) -> None:
        """Note a source file that was read to its end; all tensors made of it must be noted before."""
        self.files[name] = sha256
        self._append({"file": name, "sha256": sha256})

    def close(self) -> None:
        """Close the file. What of a line could not be written was an error then, and would be one again."""
        with suppress(OSError):
            self._file.close()

    def _start(self, head: Mapping[str, str]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._append({"journal": _FORMAT, **head})

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a complete line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _is_entry(entry: Mapping[str, Any]) -> bool:
    """Whether a line says what a run writes: it may have been written by something else."""
    if "file" in entry:
        return isinstance(entry["file"], str) and isinstance(entry.get("sha256"), str)
    outputs, error = entry.get("outputs"), entry.get("error")
    texts = isinstance(entry.get("id"), str) and isinstance(entry.get("digest"), str)
    number = error is None or (isinstance(error, int | float) and math.isfinite(error))
    return texts and number and isinstance(outputs, dict) and all(map(_is_output, outputs.values()))


def _is_output(output: Any) -> bool:
    if not isinstance(output, dict) or not isinstance(output.get("size"), int):
        return False
    return isinstance(output.get("bytes"), str) if output.get("offset") is None else isinstance(output.get("crc32"), int)
