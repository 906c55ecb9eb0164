"""Reading one safetensors file a tensor at a time.

Read with plain file reads instead of a memory map, so that pages already used do not count as resident memory, and with
ml_dtypes for bfloat16, so that torch is not needed. The header is checked before anything is read, as strictly as the library of
that name does it: tensors fill the data without holes, overlaps or a rest. A truncated download is refused at once and not after
ten minutes of work. Format: https://github.com/huggingface/safetensors (8 bytes little-endian
header length, JSON header, data).
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.files import open_weights_file

MAX_HEADER = 100_000_000  # the limit of the safetensors specification
_FLOATS: dict[str, npt.DTypeLike] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
    "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file."""

    dtype: str  # as the header spells it: F32, BF16, ...
    shape: tuple[int, ...]
    begin: int  # byte offset from the start of the file
    size: int  # bytes


class SafetensorsFile:
    """An opened (not loaded) safetensors file.

    Raises:
        CheckpointError: if the file is missing, is no safetensors file, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read one tensor in its stored dtype (float64, float32, float16 or bfloat16).

        Raises:
            CheckpointError: if the tensor is not made of floats or the file ends early.
        """
        info = self.tensors[name]
        dtype = numpy_dtype(self.path, name, info)
        count = math.prod(info.shape)
        try:
            with open_weights_file(self.path) as file:
                file.seek(info.begin)
                array = np.fromfile(file, dtype=dtype, count=count)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if array.size != count:
            raise CheckpointError(
                f"{self.path}: tensor {name} ends early, {array.size} of {count} values; download it again"
            )
        return array.reshape(info.shape)


def numpy_dtype(path: Path, name: str, info: TensorInfo) -> np.dtype[Any]:
    """The numpy dtype of a tensor.

    Raises:
        CheckpointError: if the tensor is not made of floats.
    """
    if info.dtype not in _FLOATS:
        raise CheckpointError(
            f"{path}: tensor {name} is stored as {info.dtype}, expected one of {', '.join(_FLOATS)}; "
            "this looks like an already quantized checkpoint, export the one with the floating-point weights"
        )
    return np.dtype(_FLOATS[info.dtype])


def _read_header(path: Path) -> dict[str, TensorInfo]:
    try:
        with open_weights_file(path) as file:
            file_size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or length > min(file_size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{path}: not a safetensors file, or truncated (a header of {length} bytes in a file of {file_size}); "
                    "download it again"
                )
            with _no_collection():
                header = json.loads(file.read(length), object_pairs_hook=partial(_object, path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8; of one that is nested deeper than any header is
        raise CheckpointError(f"{path}: not a safetensors file: its header is no JSON; download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    with _no_collection():
        tensors = {name: _tensor_info(path, name, entry, start) for name, entry in header.items()}
    _check_places(path, tensors, start, file_size)
    return tensors


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for circles, which looks at all entries again and again while a million of them are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are different, as the format demands."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"{path}: damaged header: {twice} stands in it twice; download the file again")
    return found


def _check_places(path: Path, tensors: dict[str, TensorInfo], start: int, file_size: int) -> None:
    """Raise CheckpointError unless the tensors lie one behind the other and fill the data of the file."""
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].size)):
        if info.begin != end:
            hole = f"begins {info.begin - end} bytes behind what comes before it"
            what = "overlaps another one" if info.begin < end else hole
            raise CheckpointError(f"{path}: tensor {name} {what}; the file is damaged, download it again")
        end += info.size
    if end > file_size:
        raise CheckpointError(
            f"{path}: truncated: its header announces {end} bytes, the file has {file_size}; download it again"
        )
    if end < file_size:
        raise CheckpointError(
            f"{path}: {file_size - end} bytes behind the last tensor: expected {end} bytes in all, the file has {file_size}; "
            "download it again"
        )


def _tensor_info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(value) is int and value >= 0 for value in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: damaged header entry for tensor {name}; download the file again")
    if dtype in _BYTES:
        expected = math.prod(shape) * _BYTES[dtype]
        if expected != end - begin:
            raise CheckpointError(
                f"{path}: tensor {name} {dtype} {list(shape)} needs {expected} bytes, the header gives {end - begin}; "
                "download the file again"
            )
    return TensorInfo(dtype, shape, start + begin, end - begin)
