"""Stored tensors: whether their data fit their shape, and where data lie that are in other files."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir as ir

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.files import check_link

_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)  # two numbers each
_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.STRING: "string_data",
}  # fmt: skip  (all others lie in int32_data)
_DATA = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
_DIGITS = 20  # of a number of bytes
_PACKED_BITS = 4  # types of at most so many bits share a byte, in int32_data too


class Place(NamedTuple):
    """Where the data of an external tensor lie."""

    file: Path
    offset: int
    length: int


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the data lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def tensor_problem(tensor: onnx.TensorProto, folder: Path) -> str:
    """What is wrong with a tensor, and what to do; empty if its data are all there.

    Args:
        tensor: initializer, attribute, or part of a sparse tensor.
        folder: of the model file.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        return f"number format {tensor.data_type} is unknown; update onnx_ir, or the file is damaged"
    if dtype == ir.DataType.UNDEFINED:
        return "has no number format; the file is damaged"
    if min(tensor.dims, default=0) < 0:
        return f"has the shape {list(tensor.dims)}; the file is damaged"
    if tensor.HasField("segment"):
        return "is stored in segments, which nothing reads; write the model again with onnx.save"
    if is_external(tensor):
        return _external_problem(tensor, dtype, folder)
    return _data_problem(tensor, dtype)


def byte_count(tensor: onnx.TensorProto) -> int:
    """Bytes of the data of a tensor without problems, strings apart."""
    return _bytes(math.prod(tensor.dims), ir.DataType(tensor.data_type))


def place_of(tensor: onnx.TensorProto, folder: Path) -> Place:
    """Where the data of an external tensor without problems lie."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Place(folder / entries["location"], int(entries.get("offset") or 0), byte_count(tensor))


def _bytes(count: int, dtype: ir.DataType) -> int:
    return -(-count * dtype.bitwidth // 8)


def _data_problem(tensor: onnx.TensorProto, dtype: ir.DataType) -> str:
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            return "holds strings as raw bytes; expected string_data"
        expected, found, unit = _bytes(count, dtype), len(tensor.raw_data), "bytes"
    else:
        per_number = 2 if dtype in _COMPLEX else 1
        packed = dtype != ir.DataType.STRING and dtype.bitwidth <= _PACKED_BITS
        expected = _bytes(count, dtype) if packed else per_number * count
        found, unit = len(getattr(tensor, _FIELDS.get(dtype, "int32_data"))), "numbers"
        strange = [name for name in _DATA if name != _FIELDS.get(dtype, "int32_data") and len(getattr(tensor, name))]
        if strange:
            return f"is of format {dtype.name.lower()}, but has data in {strange[0]}; the file is damaged"
    if expected != found:
        return f"has {found:,} {unit} of data, its shape {list(tensor.dims)} needs {expected:,}; the file is damaged"
    return ""


def _external_problem(tensor: onnx.TensorProto, dtype: ir.DataType, folder: Path) -> str:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = Path(entries.get("location", ""))
    if dtype == ir.DataType.STRING:
        return "strings cannot lie in an external file; store them in the model file"
    if not entries.get("location") or "\0" in str(location):
        return "does not say in which file its external data lie; the model file is damaged"
    if location.is_absolute() or ".." in location.parts:
        return f"its external data lies at {location}, outside the model's folder; expected a file beside the model"
    numbers = {key: entries[key] for key in ("offset", "length") if key in entries}
    if len(entries) < len(tensor.external_data):
        return "its external data names something twice (location, offset or length); the model file is damaged"
    if not all(value.isascii() and value.isdigit() and len(value) < _DIGITS for value in numbers.values()):
        return f"its external data has {numbers}; expected numbers of bytes"
    needed = _bytes(math.prod(tensor.dims), dtype)
    if int(numbers.get("length", needed)) != needed:
        return f"its external data has {int(numbers['length']):,} bytes, its shape {list(tensor.dims)} needs {needed:,}"
    file = folder / location
    try:
        check_link(file, folder)
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            file.open("rb").close()
    except CheckpointError as error:
        return f"its external data: {error}"
    except OSError as error:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return f"its external data file {location} cannot be read: {error.strerror or error}"
        return f"its external data file {location} is missing; put it beside the model"
    if not stat.S_ISREG(status.st_mode):
        return f"its external data {location} is no file; expected a file beside the model"
    end = int(numbers.get("offset", 0)) + needed
    if status.st_size < end:
        return (
            f"{file} has {status.st_size:,} bytes, but tensor {tensor.name} ends at byte {end:,}; the file is incomplete, "
            "copy it again"
        )
    return ""
