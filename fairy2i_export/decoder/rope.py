"""The settings of rotary position embeddings, and how config.json spells them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fairy2i_export.decoder.config_values import positive_float, positive_int, shown, word
from fairy2i_export.errors import ArchitectureError, CheckpointError, OptionError

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)
RopeFrequencies = Literal["bf16_load", "bf16_cast", "f32"]
ROPE_FREQUENCIES: tuple[RopeFrequencies, ...] = get_args(RopeFrequencies)
_LAYER_TYPES = ("full_attention", "sliding_attention")  # keys of rope_parameters where it is nested
_STRETCHING = ("linear", "yarn")  # kinds that need nothing but a factor


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding; most fields belong to one of the scaled kinds."""

    kind: RopeKind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 1.0
    original_max_positions: int = 0  # llama3, yarn, longrope
    fraction: float = 1.0  # of every head that is rotated; the rest stays as it is
    table_scale: float = 1.0  # yarn, longrope: cosines and sines are multiplied by it
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()  # longrope: for contexts up to original_max_positions
    long_factors: tuple[float, ...] = ()  # for longer ones
    frequencies: RopeFrequencies = "f32"  # rounding: none, after every step, or once at the end

    def rotated(self, head_dim: int) -> int:
        """How many values of a head are rotated."""
        return int(head_dim * self.fraction)


def read_rope(
    config: dict[str, Any],
    max_positions: int,
    *,
    default_theta: float = 10000.0,
    partial: bool = False,
    aliases: dict[str, str] | None = None,
) -> Rope:
    """Read the rotary embedding: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` as transformers 5 writes it.

    Where both are there, ``rope_scaling`` counts and nothing of the other, as in transformers 5. What lies inside of it counts
    before what lies beside it, except for ``original_max_position_embeddings``.

    Args:
        config: the parsed config.json.
        max_positions: its max_position_embeddings.
        default_theta: of the architecture.
        partial: whether the architecture can rotate a part of every head only.
        aliases: other names the architecture has for kinds.

    Raises:
        ArchitectureError: a kind of scaling that is not supported.
        CheckpointError: missing or impossible values.
    """
    scaling = _effective(config)
    values = scaling if scaling.get("rope_theta") is not None else config
    kind = word(scaling, "rope_type", word(scaling, "type", "default"))
    kind = (aliases or {}).get(kind, kind)
    theta = positive_float(values, "rope_theta", default_theta)
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    fraction = positive_float({"partial_rotary_factor": share}, "partial_rotary_factor", 1.0)
    if fraction != 1 and not partial:
        raise ArchitectureError("config.json: partial_rotary_factor: only full rotary embeddings (1.0) are supported")
    if kind == "default":
        return Rope("default", theta, fraction=fraction)
    if kind == "linear":
        return Rope("linear", theta, factor=positive_float(scaling, "factor"), fraction=fraction)
    # transformers prefers the value beside the scaling to the one in it
    original = positive_int(
        config if config.get("original_max_position_embeddings") is not None else scaling,
        "original_max_position_embeddings",
        max_positions,
    )
    if kind == "llama3":
        low, high = positive_float(scaling, "low_freq_factor"), positive_float(scaling, "high_freq_factor")
        if low >= high:
            raise CheckpointError(f"config.json: rope scaling: low_freq_factor {low} must be below high_freq_factor {high}")
        return Rope("llama3", theta, positive_float(scaling, "factor"), low, high, original, fraction)
    if kind == "yarn":
        return _yarn(scaling, theta, max_positions, original, fraction)
    if kind == "longrope":
        return _longrope(scaling, theta, max_positions, original, fraction)
    raise ArchitectureError(f"config.json: rope type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")


def _effective(config: dict[str, Any]) -> dict[str, Any]:
    """The entry about rope that counts, of the two spellings.

    Raises:
        CheckpointError: it is no object, or made of objects for layer types.
    """
    parameters, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    found = scaling or parameters
    if nested := [key for key, value in found.items() if isinstance(value, dict)]:
        raise CheckpointError(
            f"config.json: {'rope_scaling' if scaling else 'rope_parameters'}: {', '.join(nested)}: only Gemma 3 has rotary "
            "embeddings by layer type; expected rope_type, rope_theta and the like"
        )
    return found


def by_layer_type(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rotary embeddings of Gemma 3: layer type -> entry, in either spelling.

    Values of ``rope_scaling`` are put over those of the full layers, as in transformers 5.

    Raises:
        CheckpointError: an entry is no object or has other keys, or the spellings contradict each other.
    """
    nested, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    if not set(nested) <= set(_LAYER_TYPES) or not all(isinstance(entry, dict | None) for entry in nested.values()):
        raise CheckpointError(
            f"config.json: rope_parameters: expected objects {' and '.join(_LAYER_TYPES)}, got {shown(nested)}"
        )
    full, sliding = (dict(nested.get(kind) or {}) for kind in _LAYER_TYPES)
    if scaling and nested and not full:
        raise CheckpointError(
            f"config.json: rope_scaling is for full layers, and rope_parameters is there too but has no {_LAYER_TYPES[0]}; write "
            "all of it into rope_parameters"
        )
    if "type" in scaling and "rope_type" not in scaling:
        raise CheckpointError(
            'config.json: rope_scaling: "type" is the older name, which transformers 5 does not read for Gemma 3; call it '
            '"rope_type"'
        )
    full.update(scaling)
    for entry, beside in ((full, "rope_theta"), (sliding, "rope_local_base_freq")):
        if entry.get("rope_theta") is None and config.get(beside) is not None:
            entry["rope_theta"] = config[beside]
    return dict(zip(_LAYER_TYPES, (full, sliding), strict=True))


def spelling_warnings(config: dict[str, Any]) -> list[str]:
    """That one of two spellings counts, if both are there."""
    parameters, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    return _both_entries(config, parameters, scaling) + _inside(config, scaling or parameters)


def _inside(config: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """Contradictions of the entry that counts with itself and with what stands beside it."""
    found = []
    for key, loses in (("rope_theta", config.get("rope_theta")), ("rope_type", entry.get("type"))):
        wins = entry.get(key)
        if wins is not None and loses is not None and wins != loses:
            other = "rope_theta beside it" if key == "rope_theta" else "type"
            found.append(f"config.json: rope: {key} {wins} counts, and {other} ({loses}) does not, as in transformers")
    return found


def _both_entries(config: dict[str, Any], parameters: dict[str, Any], scaling: dict[str, Any]) -> list[str]:
    if not parameters or not scaling or parameters == scaling:
        return []
    if any(isinstance(value, dict) for value in parameters.values()):
        return [
            "config.json has rope_scaling and rope_parameters: the values of rope_scaling count for full layers, as in transformers"
        ]
    lost = sorted(key for key in parameters if key not in scaling and key != "rope_type" and config.get(key) is None)
    what = f", also without its {', '.join(lost)}" if lost else ""
    return [
        f"config.json has rope_scaling and rope_parameters: rope_scaling counts and the other does not{what}, as in transformers"
    ]


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    """An entry about rope, empty where there is none.

    Raises:
        CheckpointError: it is no object.
    """
    entry = config.get(key) or {}
    if not isinstance(entry, dict):
        raise CheckpointError(f"config.json: {key}: expected an object, got {shown(entry)}")
    return entry


def _yarn(scaling: dict[str, Any], theta: float, max_positions: int, original: int, fraction: float) -> Rope:
    if theta <= 1:
        raise CheckpointError(f"config.json: rope_theta: expected more than 1 with yarn, got {theta:g}")
    factor = positive_float(scaling, "factor", max_positions / original)
    table_scale = scaling.get("attention_factor")
    if table_scale is None:
        scale, scale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if scale and scale_all:
            table_scale = _magnitude(factor, positive_float(scaling, "mscale")) / _magnitude(
                factor, positive_float(scaling, "mscale_all_dim")
            )
        else:
            table_scale = _magnitude(factor, 1.0)
    return Rope(
        "yarn",
        theta,
        factor,
        original_max_positions=original,
        fraction=fraction,
        table_scale=positive_float({"attention_factor": table_scale}, "attention_factor"),
        beta_fast=positive_float(scaling, "beta_fast", 32.0),
        beta_slow=positive_float(scaling, "beta_slow", 1.0),
        truncate=scaling.get("truncate", True) is not False,
    )


def _magnitude(factor: float, scale: float) -> float:
    """YaRN: how much attention is sharpened when the context is stretched."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(scaling: dict[str, Any], theta: float, max_positions: int, original: int, fraction: float) -> Rope:
    factor = positive_float(scaling, "factor", max_positions / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(
        "longrope",
        theta,
        factor,
        original_max_positions=original,
        fraction=fraction,
        table_scale=positive_float(scaling, "attention_factor", default),
        short_factors=_factors(scaling, "short_factor"),
        long_factors=_factors(scaling, "long_factor"),
    )


def _factors(scaling: dict[str, Any], key: str) -> tuple[float, ...]:
    values = scaling.get(key)
    if not isinstance(values, list) or not values:
        raise CheckpointError(f"config.json: rope scaling: {key}: expected a list of numbers, got {shown(values)}")
    return tuple(positive_float({key: value}, key) for value in values)


def stretch_context(config: dict[str, Any], scaling: str | None) -> dict[str, Any]:
    """A copy of a config.json whose context is a factor longer, as if its rope scaling said so.

    Args:
        config: the parsed config.json; without a rope scaling of its own.
        scaling: ``linear:FACTOR`` or ``yarn:FACTOR``; None = leave it as it is. The layers of Gemma 3 that see a window only
            keep theirs.

    Raises:
        OptionError: another kind, an impossible factor, or a model that scales already or in its own way only.
        CheckpointError: an entry about rope that is no object.
    """
    if scaling is None:
        return config
    kind, _, number = str(scaling).partition(":")
    try:
        factor = float(number)
    except ValueError:
        factor = 0.0
    if kind not in _STRETCHING or not 1 < factor < math.inf:
        raise OptionError(
            f"rope scaling: expected {' or '.join(f'{known}:FACTOR' for known in _STRETCHING)} with a factor above 1, "
            f"got {scaling!r}"
        )
    nested = isinstance(_object(config, "rope_parameters").get(_LAYER_TYPES[0]), dict)
    types = by_layer_type(config) if nested else {}
    own = types[_LAYER_TYPES[0]] if nested else _effective(config)
    if own.get("rope_type", own.get("type", "default")) not in ("default", None):
        raise OptionError("rope scaling: config.json has one already; change it there")
    if config.get("model_type") == "phi3":
        raise OptionError("rope scaling: Phi-3 knows longrope only, whose factors come with the checkpoint")
    original = positive_int(config, "max_position_embeddings", 2048)
    added = {**own, "rope_type": kind, "factor": factor}
    if kind == "yarn":
        added["original_max_position_embeddings"] = original
    if own.get("rope_theta") is None and config.get("rope_theta") is not None:
        added["rope_theta"] = config["rope_theta"]
    stretched = {**config, "max_position_embeddings": int(original * factor)}
    stretched.pop("original_max_position_embeddings", None)  # would count before the one inside
    if nested:
        stretched["rope_parameters"] = {**types, _LAYER_TYPES[0]: added}
    elif _object(config, "rope_parameters"):
        stretched["rope_parameters"] = added
    else:  # the older spelling leaves the sliding layers of Gemma 3 alone
        return {**stretched, "rope_scaling": added}
    stretched.pop("rope_scaling", None)
    return stretched


def context_warnings(ropes: Iterable[Rope], context_length: int) -> list[str]:
    """What a chosen context means for the results, one sentence each."""
    if any(rope.kind == "longrope" and context_length > rope.original_max_positions for rope in ropes):
        return [
            "the context is longer than the original one, so every text is read with longrope's long factors; transformers "
            "reads shorter texts with the short ones (docs/export.md)"
        ]
    return []
