"""Every message of a model file, however deep, with words for where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf.message import Message

_OF_A_TENSOR = ("name", "doc_string", "segment", "external_data", "metadata_props")  # not its data: reading it copies it


@dataclass(frozen=True)
class Spot:
    """A message and what it is part of."""

    message: Any
    parent: Spot | None = None

    @property
    def kind(self) -> str:
        """Name of the message's type, ``NodeProto`` for example."""
        return str(self.message.DESCRIPTOR.name)

    @cached_property
    def fields(self) -> list[tuple[Any, Any]]:
        """(descriptor, value) of the fields that are set; of a tensor without its data."""
        if self.kind != "TensorProto":
            return list(self.message.ListFields())
        described = self.message.DESCRIPTOR.fields_by_name
        values = ((described[name], getattr(self.message, name)) for name in _OF_A_TENSOR)
        return [(field, value) for field, value in values if field.name != "segment" or self.message.HasField("segment")]

    def inside(self, kind: str) -> Spot | None:
        """The innermost message of a type that this one is part of, itself included."""
        spot: Spot | None = self
        while spot is not None and spot.kind != kind:
            spot = spot.parent
        return spot

    def __str__(self) -> str:
        words = []
        spot: Spot | None = self
        while spot is not None:
            words.append(_label(spot))
            spot = spot.parent
        return ", ".join(word for word in reversed(words) if word) or "the model"


def spots(model: Message) -> Iterator[Spot]:
    """All messages in the order of the file; fields of a message that is changed meanwhile are those it had before."""
    pending = [Spot(model)]
    while pending:
        spot = pending.pop()
        yield spot
        children = []
        for _, value in spot.fields:
            if isinstance(value, Message):
                children.append(Spot(value, spot))
            elif not isinstance(value, (str, bytes, int, float)) and len(value) and isinstance(value[0], Message):
                children.extend(Spot(item, spot) for item in value)
        pending.extend(reversed(children))


def node_label(node: Any) -> str:
    """A node in words: by its name, else by what it computes."""
    name = node.name or next(iter(node.output), "")
    return f"node {text(name)} ({text(node.op_type)})"


def text(name: str | bytes) -> str:
    """A name for a message, whatever bytes it is made of."""
    return repr(name if isinstance(name, str) else name.decode(errors="backslashreplace"))


def _label(spot: Spot) -> str:
    message, kind = spot.message, spot.kind
    if kind == "NodeProto":
        return node_label(message)
    if kind == "FunctionProto":
        return f"function {text(message.name)}"
    if kind == "AttributeProto":
        return f"attribute {text(message.name)}"
    if kind == "ValueInfoProto":
        return f"value {text(message.name)}"
    if kind == "TensorProto":
        return f"tensor {text(message.name)}" if message.name else "a tensor"
    if kind == "SparseTensorProto":
        return f"sparse tensor {text(message.values.name)}" if message.values.name else "a sparse tensor"
    return ""
