"""Reading single values of a config.json: present, of the right type, in range."""

from __future__ import annotations

from typing import Any

from fairy2i_export.errors import CheckpointError


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
