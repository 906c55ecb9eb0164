"""What onnx_ir cannot hold, or holds only in part, is refused by name: a rewriting must lose nothing in silence."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.unknown_fields import UnknownFieldSet

from fairy2i_export.rewrite.opening.walk import Spot

MULTI_DEVICE_IR_VERSION = 11  # the first file format with device configurations
_TYPES = onnx.AttributeProto
# type of an attribute -> its field
_FIELD = {
    _TYPES.INT: "i", _TYPES.FLOAT: "f", _TYPES.STRING: "s", _TYPES.TENSOR: "t", _TYPES.GRAPH: "g",
    _TYPES.SPARSE_TENSOR: "sparse_tensor", _TYPES.TYPE_PROTO: "tp", _TYPES.INTS: "ints", _TYPES.FLOATS: "floats",
    _TYPES.STRINGS: "strings", _TYPES.TENSORS: "tensors", _TYPES.GRAPHS: "graphs", _TYPES.SPARSE_TENSORS: "sparse_tensors",
    _TYPES.TYPE_PROTOS: "type_protos",
}  # fmt: skip
_MESSAGES = (_TYPES.TENSOR, _TYPES.GRAPH, _TYPES.SPARSE_TENSOR, _TYPES.TYPE_PROTO)  # those without a default


def field_problem(spot: Spot) -> str:
    """Why a message cannot be carried over, and what to do; empty if it can."""
    if len(UnknownFieldSet(spot.message)):
        return "holds fields that onnx does not know: the file is damaged, or of a newer ONNX; update the package onnx"
    for field, value in spot.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            values = [value] if isinstance(value, (str, bytes)) else value
            if not all(isinstance(item, str) for item in values):
                return f"{field.name} is not UTF-8; the file is damaged, or its names have to be written again"
    check = _CHECKS.get(spot.kind)
    return "" if check is None else check(spot)


def _model(spot: Spot) -> str:
    if spot.message.training_info:
        return (
            "holds training_info, graphs that train the weights which a rewriting packs; take it out for inference: "
            "del model.training_info[:]"
        )
    return _twice("opset_import", [item.domain for item in spot.message.opset_import]) or _twice(
        "functions", [(item.domain, item.name, item.overload) for item in spot.message.functions]
    )


def _twice(what: str, keys: list[Any]) -> str:
    key, count = next(iter(Counter(keys).most_common(1)), ("", 0))
    return f"has {key!r} {count} times in {what}, and only one of them can hold; remove the others" if count > 1 else ""


def _node(spot: Spot) -> str:
    return _twice("its attributes", [attribute.name for attribute in spot.message.attribute])


def _attribute(spot: Spot) -> str:
    attribute = spot.message
    held = [name for name in _FIELD.values() if name in {field.name for field, _ in spot.fields}]
    if attribute.ref_attr_name:
        return "" if not held else "refers to an attribute of its function and has a value of its own too; remove one"
    if attribute.type not in _FIELD:
        return "does not say what type it is of; the file is damaged, or of a very old exporter: write it again with onnx.helper"
    other = [name for name in held if name != _FIELD[attribute.type]]
    if other:
        declared = _TYPES.AttributeType.Name(attribute.type)
        return f"is declared as {declared}, but has a value in the field {other[0]!r}; the file is damaged"
    if not held and attribute.type in _MESSAGES:
        return f"is declared as {_TYPES.AttributeType.Name(attribute.type)}, but has no value; the file is damaged"
    if attribute.type == _TYPES.STRINGS and not all(map(_is_text, attribute.strings)):
        return "has strings that are not UTF-8; write them as a tensor of bytes"
    if attribute.type == _TYPES.SPARSE_TENSORS or (attribute.type == _TYPES.SPARSE_TENSOR and not is_sparse_constant(spot)):
        return "is sparse, which only a Constant's sparse_value may be; make it dense"
    return ""


def is_sparse_constant(spot: Spot) -> bool:
    """Whether an attribute is the ``sparse_value`` of a standard Constant node."""
    node = spot.parent.message if spot.parent is not None and spot.parent.kind == "NodeProto" else None
    return (
        node is not None
        and node.op_type == "Constant"
        and node.domain in ("", "ai.onnx")
        and spot.message.name == "sparse_value"
        and spot.message.type == _TYPES.SPARSE_TENSOR
        and len(node.output) == 1
    )


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _type(spot: Spot) -> str:
    kind = spot.message.WhichOneof("value")
    if kind in ("map_type", "opaque_type"):
        advice = "; export scikit-learn models with options={'zipmap': False}" if kind == "map_type" else ""
        return f"is of a {kind.removesuffix('_type')} type, which cannot be carried over; take its nodes out of the graph{advice}"
    if kind in ("sequence_type", "optional_type"):
        inner = getattr(spot.message, kind).elem_type
        if inner.WhichOneof("value") is None:
            return f"is of a {kind.removesuffix('_type')} type that does not say of what; the file is damaged"
    if kind in ("tensor_type", "sparse_tensor_type"):
        number = getattr(spot.message, kind).elem_type
        try:
            ir.DataType(number)
        except ValueError:
            return f"is of number format {number}, which onnx_ir does not know; update it, or the file is damaged"
    return ""


def _device(spot: Spot) -> str:
    model = spot.inside("ModelProto")
    version = MULTI_DEVICE_IR_VERSION if model is None else model.message.ir_version
    if version >= MULTI_DEVICE_IR_VERSION:
        return ""
    return (
        f"has device configurations but ir_version {version}, and they are part of ONNX from {MULTI_DEVICE_IR_VERSION} on; "
        "set model.ir_version, or remove them"
    )


def _graph(spot: Spot) -> str:
    unnamed = sum(not tensor.name for tensor in spot.message.initializer)
    unnamed += sum(not sparse.values.name for sparse in spot.message.sparse_initializer)
    return f"{unnamed} initializers have no name, so nothing can use them; remove them" if unnamed else ""


_CHECKS = {
    "ModelProto": _model,
    "NodeProto": _node,
    "AttributeProto": _attribute,
    "TypeProto": _type,
    "GraphProto": _graph,
    "DeviceConfigurationProto": _device,
    "NodeDeviceConfigurationProto": _device,
}
