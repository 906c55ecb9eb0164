"""What is read of a model.onnx, without the package onnx: the parts of ModelProto that an exported model has, and no others.

Field numbers are those of onnx.proto (ONNX 1.13 to 1.20).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fairy2i_runtime.engine.graph.wire import Message, Reader, WireError

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10  # TensorProto.DataType
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT64: 8, FLOAT16: 2}  # of initializers
TYPE_NAMES = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
MOST_RANK = 8
MOST_ELEMENTS = 1 << 40
_EXTERNAL = 1  # TensorProto.DataLocation

_ENTRY = Message("an entry of text", {1: ("key", "text"), 2: ("value", "text")})
_OPSET = Message("an operator set", {1: ("domain", "text"), 2: ("version", "int")})
_DIM = Message("a dimension", {1: ("value", "int"), 2: ("param", "text"), 3: ("denotation", "text")})
_SHAPE = Message("a shape", {1: ("dims", [_DIM])})
_TENSOR_TYPE = Message("a tensor's type", {1: ("elem_type", "int"), 2: ("shape", _SHAPE)})
_TYPE = Message(
    "a type",
    {1: ("tensor", _TENSOR_TYPE), 6: ("denotation", "text")},
    {4: "a sequence", 5: "a map", 7: "an opaque type", 8: "a sparse tensor", 9: "an optional value"},
)
_VALUE = Message(
    "a value's description", {1: ("name", "text"), 2: ("type", _TYPE), 3: ("doc", "text"), 4: ("metadata", [_ENTRY])}
)
_TENSOR = Message(
    "an initializer",
    {
        1: ("dims", ["int"]), 2: ("data_type", "int"), 8: ("name", "text"), 9: ("raw", "bytes"), 12: ("doc", "text"),
        4: ("floats", ["float"]), 5: ("int32s", ["int"]), 7: ("int64s", ["int"]), 13: ("external", [_ENTRY]),
        14: ("location", "int"), 16: ("metadata", [_ENTRY]),
    },
    {3: "a segment", 6: "texts", 10: "float64 values", 11: "uint64 values"},
)  # fmt: skip
_ATTRIBUTE = Message(
    "an attribute",
    {
        1: ("name", "text"), 2: ("f", "float"), 3: ("i", "int"), 4: ("s", "bytes"), 5: ("t", _TENSOR), 7: ("floats", ["float"]),
        8: ("ints", ["int"]), 13: ("doc", "text"), 20: ("type", "int"), 21: ("reference", "text"),
    },
    {6: "a sub-graph", 9: "texts", 10: "tensors", 11: "sub-graphs", 14: "a type", 15: "types", 22: "a sparse tensor",
     23: "sparse tensors"},
)  # fmt: skip
_NODE = Message(
    "a node",
    {
        1: ("inputs", ["text"]), 2: ("outputs", ["text"]), 3: ("name", "text"), 4: ("op", "text"), 5: ("attributes", [_ATTRIBUTE]),
        6: ("doc", "text"), 7: ("domain", "text"), 8: ("overload", "text"), 9: ("metadata", [_ENTRY]),
    },
)  # fmt: skip
_GRAPH = Message(
    "the graph",
    {
        1: ("nodes", [_NODE]), 2: ("name", "text"), 5: ("initializers", [_TENSOR]), 10: ("doc", "text"), 11: ("inputs", [_VALUE]),
        12: ("outputs", [_VALUE]), 13: ("values", [_VALUE]), 16: ("metadata", [_ENTRY]),
    },
    {14: "quantization annotations", 15: "sparse initializers"},
)  # fmt: skip
_FUNCTION = Message(
    "a function",
    {
        1: ("name", "text"), 4: ("inputs", ["text"]), 5: ("outputs", ["text"]), 6: ("attributes", ["text"]), 7: ("nodes", [_NODE]),
        8: ("doc", "text"), 9: ("opsets", [_OPSET]), 10: ("domain", "text"), 14: ("metadata", [_ENTRY]),
    },
    {11: "attributes with defaults", 12: "types of values", 13: "an overload"},
)  # fmt: skip
_MODEL = Message(
    "the model",
    {
        1: ("ir_version", "int"), 2: ("producer", "text"), 3: ("producer_version", "text"), 4: ("domain", "text"),
        5: ("version", "int"), 6: ("doc", "text"), 7: ("graph", _GRAPH), 8: ("opsets", [_OPSET]), 14: ("metadata", [_ENTRY]),
        25: ("functions", [_FUNCTION]),
    },
    {20: "training information", 26: "a configuration of devices"},
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An initializer: its type, dimensions, and either its bytes or the entries that say where they lie."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    raw: bytes | None
    external: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of its contents."""
        return math.prod(self.dims) * ITEM_BYTES[self.data_type]

    @property
    def ints(self) -> tuple[int, ...]:
        """Its numbers, for int64 that is part of the file; WireError otherwise."""
        if self.data_type != INT64 or self.raw is None or len(self.dims) > 1:
            raise WireError(f"initializer {self.name!r}: expected int64 numbers in the file itself")
        return tuple(int.from_bytes(self.raw[at : at + 8], "little", signed=True) for at in range(0, len(self.raw), 8))


def read_model(data: bytes) -> dict[str, Any]:
    """The fields of a model by name, see the tables above.

    Raises:
        WireError: if it is no model, or has something that no exported model has.
    """
    model = Reader().read(_MODEL, data)
    if "graph" not in model:
        raise WireError("it holds no graph")
    return model


def tensor(fields: dict[str, Any]) -> Tensor:
    """An initializer; WireError unless its contents are as long as type and dimensions say."""
    name, data_type, dims = fields.get("name", ""), fields.get("data_type", 0), tuple(fields["dims"])
    what = f"initializer {name!r}"
    if data_type not in ITEM_BYTES:
        raise WireError(f"{what}: of type {TYPE_NAMES.get(data_type, data_type)}, which no exported model has")
    if len(dims) > MOST_RANK or min(dims, default=1) < 0 or math.prod(max(1, dim) for dim in dims) > MOST_ELEMENTS:
        raise WireError(f"{what}: of impossible dimensions {list(dims)[:MOST_RANK]}")
    if fields["floats"] or fields["int32s"] or fields["int64s"]:
        raise WireError(f"{what}: expected its contents as bytes")
    is_external = fields.get("location", 0) == _EXTERNAL
    if fields.get("location", 0) not in (0, _EXTERNAL) or is_external != bool(fields["external"]):
        raise WireError(f"{what}: is neither part of the file nor of another")
    external = {entry.get("key", ""): entry.get("value", "") for entry in fields["external"]}
    if len(external) != len(fields["external"]):
        raise WireError(f"{what}: says twice where its contents are")
    raw = None if is_external else fields.get("raw", b"")
    if is_external and "raw" in fields:
        raise WireError(f"{what}: has its contents in two places")
    found = Tensor(name, data_type, dims, raw, external)
    if raw is not None and len(raw) != found.nbytes:
        raise WireError(f"{what}: expected {found.nbytes} bytes, found {len(raw)}")
    return found


def value_type(fields: dict[str, Any]) -> tuple[int, tuple[int | None, ...] | None]:
    """(element type, dimensions) of a value's description; None for what is unknown or has a name."""
    found = fields.get("type", {}).get("tensor")
    if found is None:
        raise WireError(f"value {fields.get('name', '')!r}: expected a tensor")
    if "shape" not in found:
        return found.get("elem_type", 0), None
    dims = tuple(dim.get("value") for dim in found["shape"]["dims"])
    named_twice = any("value" in dim and "param" in dim for dim in found["shape"]["dims"])
    if named_twice or len(dims) > MOST_RANK or any(dim is not None and not 0 <= dim <= MOST_ELEMENTS for dim in dims):
        raise WireError(f"value {fields.get('name', '')!r}: of impossible dimensions")
    return found.get("elem_type", 0), dims
