"""config.json's entry ``fairy2i``: how a model was trained, for whoever exports it."""

from __future__ import annotations

from typing import Any

from fairy2i_export.codes.choices import (
    BASELINES,
    COLUMN_CHOICES,
    DEFAULTS,
    LM_HEADS,
    METHODS,
    PROFILES,
    SCALE_CHOICES,
    TRAINED_ROWS,
    check_stages,
    one_of,
)
from fairy2i_export.codes.strategies import QUANTIZERS
from fairy2i_export.errors import CheckpointError, OptionError

_CHOICES: dict[str, tuple[Any, ...]] = {
    "profile": PROFILES,
    "quantizer": QUANTIZERS,
    "row_multiplier": TRAINED_ROWS,
    "col_multiplier": COLUMN_CHOICES,
    "scales": SCALE_CHOICES,
    "lm_head": LM_HEADS,
}


def says_trained(config: dict[str, Any]) -> bool:
    """Whether config.json says that the model was trained the Fairy2i way."""
    return isinstance(config.get("fairy2i"), dict)


def trained_with(config: dict[str, Any]) -> dict[str, Any]:
    """What the entry says about the choices in ``DEFAULTS``, which hold where it does not name one; empty without an entry.

    Raises:
        CheckpointError: no object, an unknown value, weights that are dequantized already or those of a baseline.
    """
    entry = config.get("fairy2i")
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise CheckpointError(f"config.json: fairy2i: expected an object, got {entry!r}")
    if entry.get("latent", True) is not True:
        raise CheckpointError(
            'config.json: fairy2i: "latent" is not true: these weights are already dequantized, and quantizing them again '
            "would change them; export the latent weights the model was trained with"
        )
    if entry.get("method", METHODS[0]) in BASELINES:
        raise CheckpointError(
            f'config.json: fairy2i: "method" is {entry["method"]}: this model was trained as a baseline for comparison, whose '
            "weights are not sums of {1, i, -1, -i}; export a model trained with the method fairy2i"
        )
    known = {key: entry[key] for key in DEFAULTS if key in entry}
    try:
        if "stages" in known:
            check_stages(known["stages"])
        one_of("method", entry.get("method", METHODS[0]), METHODS)
        for key, allowed in _CHOICES.items():
            if key in known:
                one_of(key, known[key], allowed)
    except OptionError as error:
        raise CheckpointError(f"config.json: fairy2i: {error}") from error
    return DEFAULTS | known


def left_alone(config: dict[str, Any]) -> tuple[str, ...]:
    """Globs on the names of modules that training left alone.

    Raises:
        CheckpointError: something else stands there.
    """
    patterns = (config.get("fairy2i") or {}).get("exclude", ())
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise CheckpointError(f"config.json: fairy2i: exclude: expected a list of globs, got {patterns!r}")
    return tuple(patterns)
