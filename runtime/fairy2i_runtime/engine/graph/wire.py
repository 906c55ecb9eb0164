"""Read a protobuf message by a table of its fields, strictly: what the table does not have is an error, as is anything odd.

Strict, so that no other reader can understand the same bytes differently: a field that may occur once and occurs twice, which
readers merge, is refused. Messages of a table may not contain themselves, so that the depth is that of the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_FIELDS = 2_000_000  # in a whole message: a model of a hundred layers has 50 thousand
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no message of the kind that was expected."""


@dataclass(frozen=True)
class Message:
    """A kind of messages.

    Attributes:
        name: as messages for people call it.
        fields: by number: name and kind (``int``, ``float``, ``bytes``, ``text``, or a Message); a list of one kind is repeated.
        refused: by number: what a field means that is known and not allowed.
    """

    name: str
    fields: Mapping[int, tuple[str, Any]]
    refused: Mapping[int, str] = field(default_factory=dict)


class Reader:
    """Reads messages of up to MOST_FIELDS fields together."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def read(self, kind: Message, data: bytes) -> dict[str, Any]:
        """The fields of a message by name; repeated ones are lists, all there, others only if they are in the message.

        Raises:
            WireError: if it is none of that kind.
        """
        found: dict[str, Any] = {name: [] for name, of in kind.fields.values() if isinstance(of, list)}
        for number, wire_type, value in self._split(kind, data):
            if number not in kind.fields:
                what = kind.refused.get(number, f"field {number}, which is not known here")
                raise WireError(f"{kind.name} has {what}")
            name, of = kind.fields[number]
            if isinstance(of, list):
                if wire_type == _LENGTH and of[0] in ("int", "float"):
                    found[name] += self._packed(kind, of[0], value)
                else:
                    found[name].append(self._value(kind, of[0], wire_type, value))
            elif name in found:
                raise WireError(f"{kind.name} has two values of {name}")
            else:
                found[name] = self._value(kind, of, wire_type, value)
        return found

    def _split(self, kind: Message, data: bytes) -> Iterator[tuple[int, int, Any]]:
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise WireError(f"it has more than {MOST_FIELDS:,} fields")
            tag, at = _varint(kind, data, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _VARINT:
                value, at = _varint(kind, data, at)
                yield number, wire_type, value
                continue
            if wire_type == _LENGTH:
                size, at = _varint(kind, data, at)
            elif wire_type in (_FIXED32, _FIXED64):
                size = 4 if wire_type == _FIXED32 else 8
            else:
                raise WireError(f"{kind.name} has a field of type {wire_type}")
            if size > end - at:
                raise WireError(f"{kind.name} ends within a field")
            yield number, wire_type, data[at : at + size]
            at += size

    def _value(self, kind: Message, of: Any, wire_type: int, value: Any) -> Any:
        expected = {"int": _VARINT, "float": _FIXED32}.get(of, _LENGTH) if isinstance(of, str) else _LENGTH
        if wire_type != expected:
            raise WireError(f"{kind.name} has a field of type {wire_type} where one of type {expected} was expected")
        if isinstance(of, Message):
            return self.read(of, value)
        if of == "int":
            return _signed(value)
        if of == "float":
            return struct.unpack("<f", value)[0]
        if of == "bytes":
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise WireError(f"{kind.name} has a name or text that is no UTF-8") from None

    def _packed(self, kind: Message, of: str, data: bytes) -> list[Any]:
        if of == "float":
            if len(data) % 4:
                raise WireError(f"{kind.name} ends within a number")
            return list(struct.unpack(f"<{len(data) // 4}f", data))
        numbers, at = [], 0
        while at < len(data):
            self._left -= 1
            if self._left < 0:
                raise WireError(f"it has more than {MOST_FIELDS:,} fields")
            value, at = _varint(kind, data, at)
            numbers.append(_signed(value))
        return numbers


def _varint(kind: Message, data: bytes, at: int) -> tuple[int, int]:
    """A number of up to 64 bits and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError(f"{kind.name} ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
    raise WireError(f"{kind.name} has a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
