"""How many stages every layer has, where they differ: counted by kind of layer, and as the short form that metadata holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
STAGES_MAP_KEY = "stages_map"  # of metadata
_NONE = "-"  # in the place of a decoder layer whose module of that kind has none


def stage_map(stages: Mapping[str, int]) -> dict[str, str]:
    """Kind of layer -> its stages, a digit for every decoder layer in order; layers outside have one digit.

    Args:
        stages: by module name, for instance ``model.layers.3.mlp.up_proj``.
    """
    found: dict[str, dict[int, int]] = {}
    for name, count in stages.items():
        index, kind = _place(name)
        found.setdefault(kind, {})[index] = count
    return {
        kind: "".join(str(layers.get(index, _NONE)) for index in range(max(layers) + 1)) for kind, layers in found.items()
    }


def _place(name: str) -> tuple[int, str]:
    """Number of the decoder layer and name in it."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (0, name)


def average_bits(stages: Mapping[str, int], parameters: Mapping[str, int]) -> float:
    """Stages of the mean weight: bits per weight without padding, scales and multipliers.

    Args:
        stages: by module name, at least one.
        parameters: of each module.
    """
    return sum(count * parameters[name] for name, count in stages.items()) / sum(parameters[name] for name in stages)


def stage_entries(stages: Mapping[str, int], parameters: Mapping[str, int]) -> dict[str, str]:
    """What metadata says: all numbers of stages that occur; where they differ, also their mean and the map as JSON."""
    numbers = sorted(set(stages.values()))
    entries = {"stages": ",".join(map(str, numbers))}
    if len(numbers) > 1:
        entries["bits"] = f"{average_bits(stages, parameters):.4f}"
        entries[STAGES_MAP_KEY] = json.dumps(stage_map(stages))
    return entries


@dataclass(frozen=True)
class KindOfLayer:
    """All layers of one kind.

    Attributes:
        kind: their name inside a decoder layer, or the whole one.
        counts: stages -> how many of them have so many.
        bits: the mean over their weights.
        by_layer: their stages, see :func:`stage_map`.
    """

    kind: str
    counts: dict[int, int]
    bits: float
    by_layer: str


def kinds_of_layers(stages: Mapping[str, int], parameters: Mapping[str, int]) -> list[KindOfLayer]:
    """A table of the map for people: a row for every kind of layer, in the order in which they come."""
    members: dict[str, dict[str, int]] = {}
    for name, count in stages.items():
        members.setdefault(_place(name)[1], {})[name] = count
    return [
        KindOfLayer(kind, dict(Counter(sorted(own.values()))), average_bits(own, parameters), stage_map(own)[kind])
        for kind, own in members.items()
    ]


def in_words(stages: Mapping[str, int], parameters: Mapping[str, int]) -> str:
    """``3``, or ``2 (157 layers), 3 (53 layers), 2.25 on average``."""
    numbers = sorted(set(stages.values()))
    if len(numbers) == 1:
        return str(numbers[0])
    counts = [sum(count == number for count in stages.values()) for number in numbers]
    listed = ", ".join(f"{number} ({count} layer{'s' * (count > 1)})" for number, count in zip(numbers, counts, strict=True))
    return f"{listed}, {average_bits(stages, parameters):.3f} on average"
