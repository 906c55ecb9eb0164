"""A source that comes from Fairy2i training: train on with its settings. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.train.qat.options import QuantizationOptions, options_of
from fairy2i_export.train.recipe import Recipe

_SETTINGS = ("stages", "profile", "quantizer", "row_multiplier", "col_multiplier", "learned_scales", "activation_bits")
_RATE, _DTYPE = 3e-5, "bfloat16"
_NONE: dict[str, Any] = {"learned_scales": False}  # of the settings that may be false or 0, what is not None then
_FAIRY2I_ONLY = ("stages", "profile", "quantizer", "row_multiplier", "col_multiplier", "learned_scales")


def complete_settings(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, list[str]]:
    """Fill in how layers are quantized: what the recipe says, else what the source's config.json says, else the defaults.

    Args:
        recipe: as given.
        checkpoint: the source.

    Returns:
        The recipe with every setting of quantization (``activation_bits`` 0: none), learning rate and type of weights, and
        warnings where a given option contradicts what the source was trained with or where a choice is known to train badly.

    Raises:
        OptionError: the source's weights are dequantized, or were trained with something that this training does not have.
        CheckpointError: config.json's entry ``fairy2i`` cannot be understood.
    """
    entry = entry_of(checkpoint)
    trained: dict[str, Any] = {"method": "fairy2i", "skip_lm_head": False, **_values(QuantizationOptions())}
    stated = {}
    if entry:
        stated = {
            "method": str(entry.get("method", "fairy2i")),
            "skip_lm_head": entry.get("lm_head", "fairy2i") != "fairy2i",
            **_values(options_of(entry)),
        }
        if recipe.method not in (None, stated["method"]) or stated["method"] != "fairy2i":
            stated = {name: value for name, value in stated.items() if name not in _FAIRY2I_ONLY}
        trained |= stated
    given = {name: getattr(recipe, name) for name in trained if getattr(recipe, name) is not None}
    warnings = [
        _contradiction(name, stated[name], value)
        for name, value in given.items()
        if name in stated and stated[name] != value
    ]
    globs = {"include": recipe.include, "exclude": recipe.exclude}
    excluded = tuple(entry.get("exclude", ()))
    if not any(globs.values()):
        globs["exclude"] = excluded
    elif excluded and recipe.exclude != excluded:
        chosen = "; ".join(f"{name} {', '.join(patterns)}" for name, patterns in globs.items() if patterns)
        warnings.append(_contradiction("exclude", ", ".join(excluded), chosen, ""))
    complete = replace(recipe, **{**trained, **given, **globs})
    complete = replace(
        complete,
        learning_rate=_RATE if complete.learning_rate is None else complete.learning_rate,
        save_dtype=_DTYPE if complete.save_dtype is None else complete.save_dtype,
    )
    quantization_options(complete)
    strategy = STRATEGIES.get(complete.quantizer)
    searches = strategy is not None and strategy.searches
    if complete.method == "fairy2i" and searches and not complete.learned_scales:
        warnings.append(
            f"--quantizer {complete.quantizer} fits its scales anew in every step, which is slow and has trained a small "
            "model worse than greedy; add --learned-scales, with which it trained best (docs/quality.md)"
        )
    return complete, warnings


def entry_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """config.json's entry ``fairy2i``, empty if there is none.

    Raises:
        OptionError, CheckpointError: as :func:`complete_settings`.
    """
    entry = checkpoint.config.get("fairy2i")
    where = f"{checkpoint.directory / 'config.json'}: fairy2i"
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: expected an object, found {entry!r}")
    if entry.get("latent", True) is not True:
        raise OptionError(
            f'{checkpoint.directory}: config.json says "latent": false: its weights are dequantized already; train on from the '
            "latent ones"
        )
    patterns = entry.get("exclude", [])
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise CheckpointError(f"{where}: exclude: expected a list of globs, found {patterns!r}")
    options_of(entry)
    return entry


def stored_as(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, str]:
    """What a source that was trained already says about storing its head and embedding, where that still holds."""
    if recipe.method != "fairy2i" or not recipe.skip_lm_head:
        return {}
    entry = entry_of(checkpoint)
    return {key: str(entry[key]) for key in ("lm_head", "embedding") if entry.get(key, "fairy2i") != "fairy2i"}


def check_teacher(recipe: Recipe, teacher: Checkpoint) -> None:
    """Raise OptionError if the teacher's weights are latent ones: without quantizing they are no model to learn from."""
    if not entry_of(teacher):
        return
    which = f"--teacher {recipe.teacher}" if recipe.teacher else f"{recipe.source}, the default for the teacher"
    raise OptionError(
        f"{which}: is a model of quantization-aware training (config.json: fairy2i), whose latent weights are no float model; "
        "name the float model with --teacher"
    )


def quantization_options(recipe: Recipe) -> QuantizationOptions | None:
    """How a completed recipe quantizes; None for the method float.

    Raises:
        OptionError: an unknown value, or values that do not go together.
    """
    if recipe.method == "float":
        return None
    names = {field.name for field in fields(QuantizationOptions)} & {field.name for field in fields(Recipe)}
    chosen: dict[str, Any] = {name: getattr(recipe, name) or _NONE.get(name) for name in names}
    return QuantizationOptions(**chosen)


def settings_text(recipe: Recipe) -> str:
    """The settings of quantization in a few words: method, and what differs from none."""
    names = _SETTINGS if recipe.method == "fairy2i" else ("activation_bits",)
    values = {name.replace("_", " "): getattr(recipe, name) for name in names}
    return ", ".join(
        [f"method {recipe.method}", *(f"{name} {value}" for name, value in values.items() if value not in (None, 0, "none"))]
    ).replace("learned scales True", "learned scales")


def _values(options: QuantizationOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _SETTINGS} | {"activation_bits": options.activation_bits or 0}


def _contradiction(name: str, stated: Any, value: Any, key: str | None = None) -> str:
    said = f"{name if key is None else key} {value}".strip()
    return f"config.json says that the source was trained with {name} {stated}; training with {said} as asked"
