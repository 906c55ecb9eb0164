"""Reads a checkpoint from front to back, once: every byte is hashed as it passes, every wanted tensor is handed over.

A thread reads ahead while earlier tensors are worked on. Three buffers are used in turn, so that memory is at most three times
the largest tensor however large the checkpoint is. Files are read, not mapped: mapped pages would count as resident memory.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.files import open_weights_file
from fairy2i_export.source.safetensors_file import SafetensorsFile, numpy_dtype

_CHUNK = 1 << 22
BUFFERS = 3


@dataclass(frozen=True)
class ReadTensor:
    """A tensor that was read. The array is valid until the next item is asked for.

    Attributes:
        name: of the tensor.
        array: in its stored dtype.
        digest: SHA-256, in hex, of its file from the beginning to the end of the tensor; of a pair, of both digests.
    """

    name: str
    array: npt.NDArray[Any]
    digest: str


@dataclass(frozen=True)
class ReadFile:
    """A file was read to its end.

    Attributes:
        name: of the file.
        sha256: of its contents, in hex.
    """

    name: str
    sha256: str


class _Stopped(Exception):
    """The consumer has gone."""


class TensorStream:
    """Iterates over :class:`ReadTensor` and :class:`ReadFile` in the order of the files' names and of the bytes in them.

    Args:
        checkpoint: to read.
        wanted: names of the tensors to hand over, pairs as one; the rest is only hashed.
        skipped: names of files that need not be read at all.

    Raises (while iterating):
        CheckpointError: a wanted tensor is not made of floats, or a file cannot be read or has become shorter.
    """

    def __init__(self, checkpoint: Checkpoint, wanted: Collection[str], skipped: Collection[str]) -> None:
        self._files = [file for file in checkpoint.files if file.path.name not in skipped]
        stored = {part for name in wanted for part in checkpoint.stored(name)}
        self._names = {file.path.name: _wanted_of(checkpoint, file, stored) for file in self._files}
        self._joiner = _Joiner(checkpoint, wanted)
        self._free: queue.Queue[npt.NDArray[np.uint8]] = queue.Queue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(0, np.uint8))
        self._ready: queue.Queue[Any] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fairy2i-reader", daemon=True)

    def __enter__(self) -> TensorStream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._free.put(np.empty(0, np.uint8))  # wakes a reader that waits for a buffer
        self._thread.join()

    def __iter__(self) -> Iterator[ReadTensor | ReadFile]:
        while True:
            item, buffer = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield from self._joiner.add(item) if isinstance(item, ReadTensor) else (item,)
            del item
            if buffer is not None:
                self._free.put(buffer)

    def _run(self) -> None:
        try:
            for file in self._files:
                self._read(file)
            self._ready.put((None, None))
        except _Stopped:
            pass
        except BaseException as error:
            self._ready.put((error, None))

    def _read(self, file: SafetensorsFile) -> None:
        digest = hashlib.sha256()
        try:
            with open_weights_file(file.path) as stream:
                scratch = memoryview(bytearray(_CHUNK))
                position = 0
                for name in self._names[file.path.name]:
                    info = file.tensors[name]
                    dtype = numpy_dtype(file.path, name, info)
                    position += self._pass_over(stream, info.begin - position, scratch, digest)
                    buffer = self._buffer(info.size)
                    target = memoryview(buffer[: info.size])  # type: ignore[arg-type]
                    for start in range(0, info.size, _CHUNK):
                        self._fill(stream, target[start : start + _CHUNK], digest, name)
                    position += info.size
                    array = buffer[: info.size].view(dtype).reshape(info.shape)
                    self._ready.put((ReadTensor(name, array, digest.hexdigest()), buffer))
                    del target, array, buffer
                self._pass_over(stream, os.fstat(stream.fileno()).st_size - position, scratch, digest)
        except OSError as error:
            raise CheckpointError(f"{file.path}: cannot be read: {error.strerror or error}") from error
        self._ready.put((ReadFile(file.path.name, digest.hexdigest()), None))

    def _pass_over(self, stream: BinaryIO, size: int, scratch: memoryview, digest: Any) -> int:
        for start in range(0, size, _CHUNK):
            self._fill(stream, scratch[: min(_CHUNK, size - start)], digest, "")
        return size

    def _fill(self, stream: BinaryIO, target: memoryview, digest: Any, name: str) -> None:
        """Read exactly as much as fits into ``target`` and hash it."""
        if self._stop.is_set():
            raise _Stopped
        done = 0
        while done < len(target):
            count = stream.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                where = f"tensor {name}" if name else "it"
                raise CheckpointError(f"{stream.name}: {where} ends early; the file changed while it was read, start again")
            done += count
        digest.update(target)

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        buffer = self._free.get()
        if self._stop.is_set():
            raise _Stopped
        return buffer if buffer.size >= size else np.empty(size, np.uint8)


class _Joiner:
    """Keeps the part of a pair that was read first until the other one comes."""

    def __init__(self, checkpoint: Checkpoint, wanted: Collection[str]) -> None:
        self._checkpoint = checkpoint
        self._whole = {part: name for name in wanted if name in checkpoint.pairs for part in checkpoint.stored(name)}
        self._kept: dict[str, ReadTensor] = {}

    def add(self, item: ReadTensor) -> Iterator[ReadTensor]:
        """What is complete now: the tensor itself, or a pair."""
        name = self._whole.get(item.name)
        if name is None:
            yield item
            return
        first = self._kept.pop(name, None)
        if first is None:
            self._kept[name] = replace(item, array=item.array.copy())  # its buffer is used again
            return
        array = self._checkpoint.join(name, {part.name: part.array for part in (first, item)})
        yield ReadTensor(name, array, hashlib.sha256(f"{first.digest} {item.digest}".encode()).hexdigest())


def _wanted_of(checkpoint: Checkpoint, file: SafetensorsFile, wanted: Collection[str]) -> list[str]:
    """The wanted tensors of one file in the order of their bytes."""
    names = [name for name in file.tensors if name in wanted and checkpoint.owners.get(name) is file]
    return sorted(names, key=lambda name: (file.tensors[name].begin, file.tensors[name].size))
