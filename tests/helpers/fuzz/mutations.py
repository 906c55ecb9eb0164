"""Changes of sound files that leave most of them sound: what a random byte would make of them is seldom read to the end."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NUMBERS = (0, 1, -1, 2, 3, 7, 99, 2**31 - 1, 2**40, -(2**40), 16)
WORDS = ("", "Identity", "Gemm", "Cast", "Reshape", "MatMul", "Loop", "ai.fairy2i", "Fairy2iMatMul", "com.acme")


def messages(message: Any) -> list[Any]:
    found = [message]
    for each in found:
        for field, content in each.ListFields():
            if isinstance(content, Message):
                found.append(content)
            elif field.message_type is not None:
                found.extend(content)
    return found


def other(field: Any, everything: list[Any], dice: random.Random) -> Any:
    """A value of a field's type."""
    if field.type == FieldDescriptor.TYPE_STRING:
        known = {v for m in everything for f, v in m.ListFields() if f.type == field.type and isinstance(v, str)}
        return dice.choice([*sorted(known), *WORDS])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.choice([b"", b"\xff\xfe", b"abc", bytes(64)])
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return dice.choice([0.0, float("nan"), float("inf"), -1.0, 1e30])
    if field.type == FieldDescriptor.TYPE_ENUM:
        return dice.choice([entry.number for entry in field.enum_type.values])
    return dice.choice(NUMBERS)


def change_list(field: Any, items: Any, everything: list[Any], dice: random.Random) -> None:
    what = dice.choice(["remove", "repeat", "swap", "new"])
    place, second = (dice.randrange(len(items)), dice.randrange(len(items))) if len(items) else (0, 0)
    if what == "remove":
        del items[place : place + 1]
    elif field.message_type is None:
        items[place:place] = [items[second] if what == "repeat" and len(items) else other(field, everything, dice)]
    elif what == "new" or not len(items):
        items.add()
    elif what == "repeat":
        items.add().CopyFrom(items[place])
    else:
        kept = type(items[place])()
        kept.CopyFrom(items[place])
        items[place].CopyFrom(items[second])
        items[second].CopyFrom(kept)


def change_field(data: bytes, dice: random.Random) -> bytes:
    """An ONNX file with one field of one message removed, repeated, exchanged or filled with something else."""
    model = onnx.ModelProto.FromString(data)
    before = model.SerializeToString()
    while True:
        everything = messages(model)
        message = dice.choice(everything)
        fields = [field for field, _ in message.ListFields()] if dice.random() < 0.8 else list(message.DESCRIPTOR.fields)
        if not fields:
            continue
        field = dice.choice(fields)
        content = getattr(message, field.name)
        try:
            if isinstance(content, Message) or dice.random() < 0.2:
                message.ClearField(field.name)
            elif isinstance(content, (str, bytes, int, float)):
                setattr(message, field.name, other(field, everything, dice))
            else:
                change_list(field, content, everything, dice)
        except (ValueError, TypeError):  # a number that does not fit
            continue
        if model.SerializeToString() != before:
            return model.SerializeToString()


def change_bytes(file: bytes, dice: random.Random) -> bytes:
    """A file with one bit turned, one byte set, or its end cut off."""
    data = bytearray(file)
    place = dice.randrange(len(data))
    what = dice.randrange(5)
    if what < 3:
        data[place] ^= 1 << dice.randrange(8)
    elif what == 3:
        data[place] = dice.choice([0, 0xFF, 0x80])
    else:
        del data[place:]
    return bytes(data)


# JSON, and safetensors by their header

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 10**8, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../x",
    "a\x1b[31m", "\ud800", "x" * 300, [], {}, [0], [[]], {"": 0},
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON value are, as keys and indices; of a list the first five."""
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value[:5]):
            yield from places(item, (*at, key))


def change_value(value: Any, dice: random.Random) -> Any:
    """A JSON value with one part removed, exchanged for another one or for something else, or with one more."""
    where = [place for place in places(value) if place]
    if not where:
        return dice.choice(VALUES)
    place, second = dice.choice(where), dice.choice(where)
    parent, key, what = part(value, place[:-1]), place[-1], dice.randrange(5)
    if what == 0:
        del parent[key]
    elif what == 1:
        parent[key] = copy.deepcopy(part(value, second))
    elif what == 2 and isinstance(parent, dict):
        parent[str(dice.choice(second))] = dice.choice(VALUES)
    else:
        parent[key] = dice.choice(VALUES)
    return value


def part(value: Any, place: tuple[Any, ...]) -> Any:
    """What is there."""
    for key in place:
        value = value[key]
    return value


def change_json(data: bytes, dice: random.Random) -> bytes:
    """A JSON file with one value changed."""
    return json.dumps(change_value(json.loads(data), dice)).encode()


def change_header(data: bytes, dice: random.Random) -> bytes:
    """A safetensors file with one value of its header changed, or the length of it or of the data."""
    length = int.from_bytes(data[:8], "little")
    header, contents = data[8 : 8 + length], data[8 + length :]
    what = dice.randrange(8)
    if what == 0:
        contents = contents[: dice.randrange(len(contents) + 1)]
    elif what == 1:
        contents += bytes(dice.randrange(1, 9))
    elif what == 2:
        return dice.choice(NUMBERS).to_bytes(16, "little", signed=True)[:8] + header + contents
    else:
        header = change_json(header, dice)
    return len(header).to_bytes(8, "little") + header + contents
