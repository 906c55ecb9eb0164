"""The external data file, written in any order: every tensor has its place before the first byte is computed.

Large initializers lie in model.onnx.data in graph order, each at a multiple of 4096; small ones are part of model.onnx and
are kept in memory until that is written, which is last.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.output.disk.own_files import open_own

MODEL = "model.onnx"
DATA = f"{MODEL}.data"
ALIGNMENT = 4096  # of every tensor in the file, so that it can be mapped and executed in place
INLINE_BYTES = 1024  # smaller tensors stay in model.onnx
_CHECK_CHUNK = 1 << 22


@dataclass(frozen=True)
class Place:
    """Where an initializer goes.

    Attributes:
        offset: in the data file; None for one that is part of model.onnx.
        size: bytes.
    """

    offset: int | None
    size: int


def place_tensors(tensors: Iterable[ir.TensorProtocol]) -> tuple[dict[str, Place], int]:
    """Name -> place of every initializer, in file order, and the size of the data file."""
    places: dict[str, Place] = {}
    end = 0
    for tensor in tensors:
        name = tensor.name or ""
        if tensor.nbytes <= INLINE_BYTES:
            places[name] = Place(None, tensor.nbytes)
            continue
        start = -(-end // ALIGNMENT) * ALIGNMENT
        places[name] = Place(start, tensor.nbytes)
        end = start + tensor.nbytes
    return places, end


class DataFile:
    """The data file while it is written.

    Args:
        path: of the file; made, or opened again when an export is continued.
        places: of every initializer.
        size: of the whole file.

    Attributes:
        inline: bytes of the small initializers written so far.
    """

    def __init__(self, path: Path, places: Mapping[str, Place], size: int) -> None:
        self.places = places
        self.inline: dict[str, bytes] = {}
        self._file: BinaryIO = open_own(path)
        self._file.truncate(size)

    def close(self) -> None:
        self._file.close()

    def start(self) -> TensorWriter:
        """A writer for the tensors that one task makes."""
        return TensorWriter(self, self._file)

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Whether the file still holds what a :meth:`TensorWriter.record` says; its inline tensors are taken from it."""
        for name, entry in record.items():
            place = self.places.get(name)
            if place is None or place.size != entry["size"] or place.offset != entry.get("offset"):
                return False
            if place.offset is None:
                try:
                    self.inline[name] = base64.b64decode(entry["bytes"], validate=True)
                except ValueError:
                    return False
                if len(self.inline[name]) != place.size:
                    return False
                continue
            self._file.seek(place.offset)
            found, left = 0, place.size
            while left and (chunk := self._file.read(min(left, _CHECK_CHUNK))):
                found = zlib.crc32(chunk, found)
                left -= len(chunk)
            if left or found != entry["crc32"]:
                return False
        return True

    def replacement(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The tensor as model.onnx shall have it: a reference into this file, or the bytes."""
        name = tensor.name or ""
        place = self.places[name]
        if place.offset is None:
            array = np.frombuffer(self.inline[name], tensor.dtype.numpy()).reshape(tensor.shape.numpy())
            return ir.tensor(array, name=name)
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(DATA, place.offset, place.size, tensor.dtype, shape=shape, name=name)


class TensorWriter:
    """Takes the tensors of one task, each piece by piece from its beginning to its end."""

    def __init__(self, data: DataFile, file: BinaryIO) -> None:
        self._data = data
        self._file = file
        self._written: dict[str, int] = {}
        self._crc: dict[str, int] = {}
        self._inline: dict[str, bytearray] = {}

    def write(self, name: str, piece: npt.NDArray[Any]) -> None:
        """Append a piece to initializer ``name``."""
        place = self._data.places[name]
        done = self._written.get(name, 0)
        raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        if done + raw.nbytes > place.size:
            raise AssertionError(f"{name}: {done + raw.nbytes} bytes for a place of {place.size}")
        if place.offset is None:
            self._inline.setdefault(name, bytearray()).extend(raw)
        else:
            self._file.seek(place.offset + done)
            self._file.write(raw)
            self._crc[name] = zlib.crc32(raw, self._crc.get(name, 0))
        self._written[name] = done + raw.nbytes

    def record(self) -> dict[str, Any]:
        """Flush, and say what was written, for the journal: name -> offset, size, checksum or the bytes themselves."""
        self._file.flush()
        record: dict[str, Any] = {}
        for name, size in self._written.items():
            place = self._data.places[name]
            if size != place.size:
                raise AssertionError(f"{name}: {size} of {place.size} bytes were written")
            if place.offset is None:
                self._data.inline[name] = bytes(self._inline[name])
                record[name] = {"size": size, "bytes": base64.b64encode(self._inline[name]).decode("ascii")}
            else:
                record[name] = {"offset": place.offset, "size": size, "crc32": self._crc[name]}
        return record
