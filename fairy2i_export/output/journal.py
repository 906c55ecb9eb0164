"""What an unfinished export has done already: one line of JSON per finished tensor, in a file beside the output.

The first line says what the export is made from; a journal with another first line is worth nothing. Lines are appended when
their tensor is complete, so a killed export loses the tensors it was working on and nothing else. A line that was cut off
ends the journal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from fairy2i_export import __version__
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.errors import OutputError
from fairy2i_export.output.data_file import Place
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import learned_digest

try:
    import fcntl
except ImportError:  # Windows: two exports into one folder at a time are then not noticed
    fcntl = None  # type: ignore[assignment]

_FORMAT = "fairy2i-export journal 1"


def identity(checkpoint: Checkpoint, options: ExportOptions, places: Mapping[str, Place]) -> dict[str, str]:
    """Hashes of everything the bytes of an export depend on, without reading a weight.

    ``source`` covers config.json, learned multipliers and scales, and of every safetensors file the name, size, time of change
    and tensors; that the weights themselves are the same is checked when they are read (see
    :class:`fairy2i_export.source.tensor_stream.ReadTensor.digest`).
    """
    files = []
    for file in checkpoint.files:
        status = file.path.stat()
        tensors = {name: asdict(info) for name, info in file.tensors.items()}
        files.append([file.path.name, status.st_size, status.st_mtime_ns, tensors])
    return {
        "tool": __version__,
        "source": _hash([checkpoint.name, checkpoint.config, files, learned_digest(checkpoint, options)]),
        "options": _hash([asdict(options), {name: asdict(place) for name, place in places.items()}]),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Journal:
    """A journal that is open, and locked against a second export into the same folder.

    Args:
        path: of the file; made if it does not exist.

    Attributes:
        tensors: finished tasks: id -> what :meth:`finished_tensor` was given.
        files: name -> SHA-256 of the source files read to the end.

    Raises:
        OutputError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, dict[str, Any]] = {}
        self.files: dict[str, str] = {}
        path.touch()
        self._file: BinaryIO = path.open("r+b")
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise OutputError(
                    f"{path.parent}: another export into this folder is running; wait, or choose another"
                ) from error

    def resume(self, expected: Mapping[str, str]) -> str | None:
        """Take up what is there, if it belongs to ``expected``.

        Returns:
            None if there is something to continue or nothing at all; else why what is there cannot be used.
        """
        lines = self._file.read().splitlines(keepends=True)
        if not lines:
            self._start(expected)
            return None
        head = _parse(lines[0])
        if head is None or head.get("journal") != _FORMAT:
            self._start(expected)
            return "its journal is damaged"
        for what, words in (("tool", "it is of another version"), ("source", "the checkpoint has changed"),
                            ("options", "the options are others")):  # fmt: skip
            if head.get(what) != expected[what]:
                self._start(expected)
                return words
        good = len(lines[0])
        for line in lines[1:]:
            entry = _parse(line)
            if entry is None:
                break
            if "file" in entry:
                self.files[entry["file"]] = entry["sha256"]
            else:
                self.tensors[entry["id"]] = entry
            good += len(line)
        self._file.seek(good)
        self._file.truncate()
        return None

    def discard(self) -> None:
        """Forget what an earlier run noted: for output that is made in one go."""
        self._file.truncate(0)

    def finished_tensor(self, task: str, digest: str, outputs: Mapping[str, Any], error: float | None) -> None:
        """Note a finished task: digest of its source, what was written where, the quantization error."""
        self.tensors[task] = {"id": task, "digest": digest, "outputs": dict(outputs), "error": error}
        self._append(self.tensors[task])

    def finished_file(self, name: str, sha256: str) -> None:
        """Note a source file that was read to its end; all tensors made of it must be noted before."""
        self.files[name] = sha256
        self._append({"file": name, "sha256": sha256})

    def close(self) -> None:
        """Close the file, which unlocks it."""
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
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
