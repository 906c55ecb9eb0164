"""Reading single values of a config.json: present, of the right type, in range.

Every number passes :func:`number`, with the range that its key has below: wide enough for any model that could be run, narrow
enough that what is computed from it neither overflows nor fills the memory.
"""

from __future__ import annotations

from typing import Any

from fairy2i_export.errors import CheckpointError

MAX_POSITIONS = 1 << 24  # of a context, as for the runtime
_COUNT = (1, (1 << 31) - 1)  # onnxruntime counts positions in 32 bits
_FEATURES = (1, 1 << 24)  # as many as a layer may have (docs/format.md)
# key -> least and greatest value
INTEGERS: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 10_000),
    "max_window_layers": (0, _COUNT[1]),
    "hidden_size": _FEATURES,
    "intermediate_size": _FEATURES,
    "vocab_size": _FEATURES,
    "num_attention_heads": (1, 1 << 16),
    "num_key_value_heads": (1, 1 << 16),
    "head_dim": (1, 1 << 16),
    "max_position_embeddings": (1, MAX_POSITIONS),
    "original_max_position_embeddings": (2, MAX_POSITIONS),  # logarithms of it are divided by
    "sliding_window": _COUNT,
    "sliding_window_pattern": _COUNT,
    "no_rope_layer_interval": _COUNT,
}
_ANY = (1e-9, 1e9)  # of factors
NUMBERS: dict[str, tuple[float, float]] = {
    "rope_theta": (1.0, 1e18),
    "rms_norm_eps": (1e-30, 1.0),  # float32 has it, and something besides it
    "partial_rotary_factor": (1e-9, 1.0),
    "factor": (1e-3, 1e6),
    "query_pre_attn_scalar": (1e-9, 1e9),
}
_SHOWN = 60  # characters of a value in a message


def positive_int(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Read a whole number of config.json that is in the range of its key.

    Raises:
        CheckpointError: if it is missing without a default, or is something else.
    """
    low, high = INTEGERS[key]
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        what = f"expected a whole number from {low:,} to {high:,}"
        raise CheckpointError(f"config.json: {key}: {what}, got {shown(value)}")
    return value


def positive_float(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """Read a number of config.json that is in the range of its key; errors as :func:`positive_int`."""
    low, high = NUMBERS.get(key, _ANY)
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise CheckpointError(f"config.json: {key}: expected a number from {low:g} to {high:g}, got {shown(value)}")
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
        raise CheckpointError(f"config.json: {key}: expected true or false, got {shown(value)}")
    return value


def word(config: dict[str, Any], key: str, default: str) -> str:
    """Read a name of config.json; ``default`` when it is absent or empty.

    Raises:
        CheckpointError: if it is something else.
    """
    value = config.get(key) or default
    if not isinstance(value, str):
        raise CheckpointError(f"config.json: {key}: expected a name, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value for a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
