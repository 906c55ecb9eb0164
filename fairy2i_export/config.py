"""A decoder-only language model described without reference to where the description came from.

The architecture files (architectures/) translate a config.json into these dataclasses; the graph builder reads only them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fairy2i_export.errors import ArchitectureError, CheckpointError

RopeKind = Literal["default", "linear", "llama3"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding; the fields after theta belong to the scaled kinds."""

    kind: RopeKind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0


@dataclass(frozen=True)
class Names:
    """Module names of the checkpoint; ``{}`` stands for the layer number. Their tensors are NAME.weight and NAME.bias."""

    embedding: str
    attention_norm: str
    q: str
    k: str
    v: str
    o: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    final_norm: str
    lm_head: str


@dataclass(frozen=True)
class Decoder:
    """A pre-norm transformer decoder with RMS norms, rotary grouped-query attention and a SwiGLU feed-forward block."""

    architecture: str  # class name in config.json
    genai_type: str  # model type in genai_config.json
    names: Names
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    tied: bool  # config.json ties lm_head to the embedding
    attention_bias: bool
    mlp_bias: bool


def positive_int(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Read a positive integer of config.json.

    Raises:
        CheckpointError: if it is missing without a default, or is something else.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: {key}: expected a positive integer, got {value!r}")
    return value


def positive_float(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """Read a positive number of config.json; errors as :func:`positive_int`."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise CheckpointError(f"config.json: {key}: expected a positive number, got {value!r}")
    return float(value)


def flag(config: dict[str, Any], key: str) -> bool:
    """Read a boolean of config.json, false when absent.

    Raises:
        CheckpointError: if it is something else.
    """
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}: expected true or false, got {value!r}")
    return value


def read_rope(config: dict[str, Any], max_positions: int) -> Rope:
    """Read the rotary embedding: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` as transformers 5 writes it.

    Raises:
        ArchitectureError: a kind of scaling that is not supported.
        CheckpointError: missing or impossible values.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise CheckpointError(f"config.json: rope scaling: expected an object, got {scaling!r}")
    merged = {"rope_theta": config.get("rope_theta"), **scaling}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = positive_float(merged, "rope_theta", 10000.0)
    if merged.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise ArchitectureError("config.json: partial_rotary_factor: only full rotary embeddings (1.0) are supported")
    if kind == "default":
        return Rope("default", theta)
    if kind == "linear":
        return Rope("linear", theta, factor=positive_float(scaling, "factor"))
    if kind == "llama3":
        low, high = positive_float(scaling, "low_freq_factor"), positive_float(scaling, "high_freq_factor")
        if low >= high:
            raise CheckpointError(f"config.json: rope scaling: low_freq_factor {low} must be below high_freq_factor {high}")
        original = positive_int(scaling, "original_max_position_embeddings", max_positions)
        return Rope("llama3", theta, positive_float(scaling, "factor"), low, high, original)
    raise ArchitectureError(f"config.json: rope type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
