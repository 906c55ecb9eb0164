"""The options in force: a request, completed by what the checkpoint's config.json says about its training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from fairy2i_export.codes.choices import (
    CONVERSION_STEPS,
    DEFAULTS,
    LEARNED,
    MAX_STAGES,
    ColumnChoice,
    ScaleChoice,
    check_stages,
)
from fairy2i_export.codes.strategies import CALIBRATED
from fairy2i_export.codes.training_entry import left_alone, says_trained, trained_with
from fairy2i_export.decoder.architectures.ifairy import CHOSEN
from fairy2i_export.errors import OptionError
from fairy2i_export.onnx_graph.formats import FORMATS
from fairy2i_export.request.option import check_choices, declared, words_of
from fairy2i_export.request.request import CALIBRATED_HEAD_STAGES, DEFAULT_CONTEXT, Request

CALIBRATED_STAGES = 4  # fewer lose too much without training (docs/quality.md)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Request):
    """A request that is complete and checked, and what only a checkpoint or calibration decides.

    Attributes:
        col_multiplier: factors per input column, as trained.
        scales: computed or learned, as trained.
        calibrated_by: hash of text and method, for codes found by calibration instead of rounding.
        rotation: the rotations that are absorbed into the weights, as metadata states them; None: there are none.
    """

    col_multiplier: ColumnChoice = "none"
    scales: ScaleChoice = "computed"
    calibrated_by: str | None = None
    rotation: str | None = None

    @property
    def head_stages(self) -> int:
        """Stages of an lm_head that is quantized like the layers, before ``--bits`` gives it as many as it needs."""
        if self.lm_head_stages is not None:
            return self.lm_head_stages
        if self.calibrated_by is not None:
            return max(self.stages, CALIBRATED_HEAD_STAGES)
        return self.stages

    def decisive(self) -> dict[str, Any]:
        """All that the bytes of the exported tensors depend on."""
        neutral = {name for name, found in declared(Request, "checkpoint").items() if found.neutral}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in neutral}


def resolve_options(
    request: Request,
    config: dict[str, Any],
    max_positions: int,
    embedding_dtype: str,
    calibrated_by: str | None = None,
    method: dict[str, Any] | None = None,
    can_share: bool = False,
) -> tuple[ExportOptions, list[str]]:
    """Complete a request from config.json's ``fairy2i`` entry, else from the defaults, and check it.

    Args:
        request: what the caller asked for.
        config: the parsed config.json.
        max_positions: the longest context the model was made for.
        embedding_dtype: how the checkpoint stores the embedding: 16-bit floats stay 16-bit by default.
        calibrated_by: hash of text and method if the layers are going to be calibrated.
        method: how the model is quantized if that is its own, see :func:`~fairy2i_export.compile.fixed_method.fixed_method`.
        can_share: whether embedding and lm_head can be one int8 matrix; a calibrated model with an int8 lm_head then has one.

    Returns:
        The options, and warnings where a given option contradicts how the checkpoint says it was trained.

    Raises:
        OptionError: an unknown or impossible value was given.
        CheckpointError: config.json's entry holds one, or says that the weights are already dequantized.
    """
    check_bits(request)
    if calibrated_by is not None:
        request = _calibrated(request, config)
    trained = trained_with(config)
    asked = request.asked
    entry = config.get("fairy2i") or {}
    warnings = [
        f"config.json says that the model was trained with {key} {stated}"
        f"{'' if key in entry else ', the default'}; exporting with {asked[key]} as asked"
        for key, stated in trained.items()
        if asked.get(key) is not None and asked[key] != stated
    ]
    standard = {name: found.fallback for name, found in declared(Request, "checkpoint").items()}
    standard |= DEFAULTS | trained | (method or {})
    standard |= CHOSEN if method is not None else {}
    standard["embedding"] = entry.get("embedding") or ("float16" if embedding_dtype in ("BF16", "F16") else "float32")
    standard["context_length"] = min(max_positions, DEFAULT_CONTEXT)
    values = standard | {name: value for name, value in asked.items() if value is not None}
    values["exclude"] = (*request.exclude, *left_alone(config))
    if can_share and calibrated_by is not None and values["lm_head"] == "int8" and asked["embedding"] is None:
        values["embedding"] = "shared"
    options = ExportOptions(**values, calibrated_by=calibrated_by)
    check_stages(options.stages)
    if options.lm_head_stages is not None:
        check_stages(options.lm_head_stages, "lm_head stages")
        if options.lm_head_stages != options.stages:
            warnings += _other_head(options, trained)
    check_choices(options, "checkpoint")
    without = tuple(step for step in CONVERSION_STEPS if step in options.calibrate_without)
    options = replace(options, calibrate_without=without)  # in one order: it does not matter
    length: Any = options.context_length
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= max_positions:
        raise OptionError(
            f"context length: expected 1 to {max_positions} (max_position_embeddings in config.json), got {length!r}"
        )
    _check_format_options(request, options.backend)
    if calibrated_by is not None:
        options = replace(options, row_multiplier="calibrated", quantizer=CALIBRATED.name)
    return options, warnings


def _other_head(options: ExportOptions, trained: dict[str, Any]) -> list[str]:
    """Warnings about an lm_head with other stages than the layers, where training knew one number for all.

    Raises:
        OptionError: its scales were trained, and are those of that number.
    """
    if options.scales == LEARNED:
        raise OptionError(
            f"lm_head stages: its scales were trained for {options.stages} stages, got {options.lm_head_stages}; leave the option "
            "out, or store lm_head as int8, int4 or float"
        )
    if trained.get("lm_head") != "fairy2i":
        return []
    return [
        f"config.json says that the model was trained with stages {options.stages}, lm_head included; exporting that with "
        f"{options.lm_head_stages} as asked"
    ]


def check_bits(request: Request) -> None:
    """Raise OptionError if an average is asked for that is impossible, or where nothing can choose who gets how many stages."""
    value = request.bits
    if value is None:
        return
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= MAX_STAGES):
        raise OptionError(f"bits: expected a number from 1 to {MAX_STAGES}, got {value!r}")
    if request.asked["stages"] is not None:
        raise OptionError(
            f"bits: is an average that layers differ from, and stages is the same for all; got bits {value:g} and stages "
            f"{request.stages!r}, leave one of the two out"
        )
    if not request.calibrate:
        raise OptionError(
            f"bits: the text of --calibrate tells how many stages a layer needs, and none was given (got bits {value:g}); add "
            "--calibrate TEXT, or ask for --stages N"
        )


def _calibrated(request: Request, config: dict[str, Any]) -> Request:
    """The defaults of a conversion without training; options that it decides itself must not be given."""
    if says_trained(config):
        raise OptionError(
            "calibrate: config.json says that this model was trained with Fairy2i; calibration is for models that were not. "
            "Leave --calibrate out, or remove the fairy2i entry"
        )
    asked = request.asked
    for name, fixed in (("profile", "fp32"), ("quantizer", CALIBRATED.name)):
        if asked[name] not in (None, fixed):
            raise OptionError(f"{name}: calibration uses {fixed}, got {asked[name]!r}; leave the option out")
    if asked["row_multiplier"] is not None:
        raise OptionError(
            f"row multiplier: calibration finds its own, got {asked['row_multiplier']!r}; leave the option out"
        )
    stages = CALIBRATED_STAGES if request.bits is None else math.ceil(request.bits)  # the most that the average suggests
    decided: dict[str, Any] = {"stages": stages, "profile": "fp32", "lm_head": "int8"}
    return replace(request, **{name: value for name, value in decided.items() if asked[name] is None})


def _check_format_options(request: Request, backend: str) -> None:
    """Raise OptionError if an option was given that means something to other formats only."""
    known = declared(Request, "checkpoint")
    for other in FORMATS.values():
        for name in other.options:
            if other.name != backend and request.asked[name] is not None:
                raise OptionError(f"{words_of(name, known[name])}: is for the backend {other.name}, and this is {backend}")
