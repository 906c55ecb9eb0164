"""A node of a graph and what is known of its operands, for the rules about operators."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from fairy2i_runtime.engine.graph.model_file import FLOAT, FLOAT16, INT64, Tensor

FLOATS = (FLOAT, FLOAT16)

_FEW = 1024  # numbers of a constant list


class GraphError(ValueError):
    """What is in a graph that no exported graph has, in words."""


class DataFileError(GraphError):
    """What is wrong with a file of weights; a whole sentence that names it."""


@dataclass(frozen=True)
class Activation:
    """A value [batch, sequence, *tail] of an element type."""

    type: int
    tail: tuple[int, ...]


@dataclass(frozen=True)
class Cache:
    """An input past_key_values.LAYER.PART, [batch, heads, past, size]."""

    layer: int
    part: str
    type: int
    heads: int
    size: int


@dataclass
class Call:
    """A node with its operands: activations, tensors, caches, names of positions' steps, or None where one is absent."""

    operator: str
    operands: list[Any]
    outputs: list[str]
    attributes: dict[str, Any]
    positions_from_tables: list[int] = field(default_factory=list)  # rows of every rotary table that is used
    embedding_rows: list[int] = field(default_factory=list)

    def need(self, condition: bool, expected: str) -> None:
        """Raise GraphError unless something holds."""
        if not condition:
            raise GraphError(f"expected {expected}")

    def count(self, least: int, most: int | None = None) -> None:
        """Check the number of operands; those after the last are absent."""
        most = least if most is None else most
        self.need(least <= len(self.operands) <= most, f"{least} to {most} inputs, found {len(self.operands)}")
        self.operands += [None] * (most - len(self.operands))

    def activation(self, index: int, width: int | None = None, kind: int | None = FLOAT) -> Activation:
        """An operand that is an activation; with a width, [batch, sequence, width]."""
        found = self.operands[index]
        self.need(isinstance(found, Activation), f"input {index} to be an activation")
        self.need(found.type == kind if kind else found.type in FLOATS, f"input {index} of another type")
        self.need(width is None or found.tail == (width,), f"input {index} [..., {width}], found {found.tail}")
        return found  # type: ignore[no-any-return]

    def tensor(self, index: int, kind: int, *dims: int | None) -> Tensor:
        """An operand that is an initializer of a type and of dimensions; None: of any length."""
        found = self.operands[index]
        self.need(isinstance(found, Tensor), f"input {index} to be an initializer")
        fits = len(found.dims) == len(dims) and all(d in (None, f) for d, f in zip(dims, found.dims, strict=True))
        self.need(found.data_type == kind and fits, f"input {index} of type {kind}, {list(dims)}, found {list(found.dims)}")
        return found  # type: ignore[no-any-return]

    def step(self, index: int, *expected: str) -> str:
        """An operand that is one of the steps of :mod:`.positions`."""
        self.need(self.operands[index] in expected, f"input {index} to be the {expected[0]} of the exported graph")
        return str(self.operands[index])

    def absent(self, *indices: int) -> None:
        """Check that operands are absent."""
        self.need(all(self.operands[index] is None for index in indices), f"no inputs {indices}")

    def take(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Remove an integer attribute and return it; without a default it has to be there."""
        value = self.attributes.pop(name, default)
        self.need(
            isinstance(value, int) and least <= value <= most, f"an attribute {name} from {least} to {most}, found {value}"
        )
        return int(value)

    def take_float(self, name: str, default: float) -> float:
        """Remove a float attribute and return it: finite, not negative."""
        value = self.attributes.pop(name, default)
        self.need(isinstance(value, float) and 0 <= value < 1e6, f"an attribute {name} from 0 to 1e6, found {value}")
        return float(value)


def attributes_of(node: dict[str, Any]) -> dict[str, Any]:
    """Attributes by name: int, float or bytes."""
    found: dict[str, Any] = {}
    for fields in node["attributes"]:
        name, kind = fields.get("name", ""), fields.get("type", 0)
        value = {1: fields.get("f", 0.0), 2: fields.get("i", 0), 3: fields.get("s", b"")}.get(kind)
        other = {"f", "i", "s", "t", "reference"} & set(fields) - {{1: "f", 2: "i", 3: "s"}.get(kind, "")}
        if name in found or value is None or other or fields["ints"] or fields["floats"]:
            raise GraphError(f"an attribute {name!r} of a kind that no exported decoder has")
        found[name] = value
    return found


def as_constant(operand: Any) -> str | None:
    """An operand of a step of the positions."""
    if not isinstance(operand, Tensor):
        return operand if isinstance(operand, str) else None
    if operand.data_type == FLOAT and operand.raw is not None and not operand.dims:
        return str(struct.unpack("<f", operand.raw)[0])
    listed = as_list(operand)
    return listed if isinstance(listed, str) else None


def as_list(operand: Any) -> Any:
    """An operand; whole numbers that are part of the file are a text, ``1`` or ``[1,3]``."""
    if isinstance(operand, Tensor) and operand.data_type == INT64 and operand.raw is not None and operand.nbytes <= 8 * _FEW:
        shown = ",".join(map(str, operand.ints))
        return f"[{shown}]" if operand.dims else shown
    return operand
