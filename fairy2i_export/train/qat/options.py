"""What a quantization-aware layer computes with; the same choices as config.json's ``fairy2i`` entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fairy2i_export.codes.choices import (
    COLUMN_CHOICES,
    DEFAULTS,
    METHODS,
    PROFILES,
    TRAINED_ROWS,
    ColumnChoice,
    Method,
    Profile,
    check_stages,
    one_of,
)
from fairy2i_export.codes.strategies import QUANTIZERS
from fairy2i_export.errors import OptionError


@dataclass(frozen=True)
class QuantizationOptions:
    """How linear layers are quantized while they train.

    Attributes:
        method: ``fairy2i``, or a baseline to compare with: ``binary`` (sign times mean magnitude) or ``ternary`` (b1.58 absmean).
        stages: residual stages of ``fairy2i``, 1 to 4 (W1 to W4); the baselines have none.
        profile: ``bf16-reference`` rounds after every step as the published code does, ``fp32`` does not round.
        quantizer: ``greedy``, the published one, or ``joint``: codes of all stages chosen together, scales fitted to them. Found in
            main memory wherever the weight is, and in every step unless the scales are learned.
        row_multiplier: one factor per output row: ``none``, ``rms`` (computed from the weights) or ``learned`` (a parameter
            ``row_multiplier`` [2n] that starts as the root mean square of its row).
        col_multiplier: one factor per input column: ``none``, or ``learned`` (a parameter ``col_multiplier`` [2m] that starts with
            ones; the weight is divided by it after the rows).
        learned_scales: the scales are a parameter ``scales`` [stages, 2 (U, W), 2 (re, im)] that starts with what the quantizer
            computes, instead of being computed from the weights in every step.
        activation_bits: 8 rounds the inputs of every layer to int8, one scale per token; None leaves them alone.
        cache: keep the dequantized weight of layers in main memory until the latent one changes. Off, it is computed in every
            forward pass and lives from there to the backward pass.
    """

    method: Method = "fairy2i"
    stages: int = DEFAULTS["stages"]
    profile: Profile = DEFAULTS["profile"]
    quantizer: str = DEFAULTS["quantizer"]
    row_multiplier: Literal["none", "rms", "learned"] = "none"
    learned_scales: bool = False
    col_multiplier: ColumnChoice = "none"
    activation_bits: Literal[8] | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            one_of(name.replace("_", " "), getattr(self, name), allowed)
        check_stages(self.stages)
        learned = self.learned_scales or (self.row_multiplier, self.col_multiplier) != ("none", "none")
        if self.method != "fairy2i" and learned:
            raise OptionError(f"method {self.method} has neither multipliers nor learned scales; those are for fairy2i")


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "method": METHODS,
    "profile": PROFILES,
    "quantizer": QUANTIZERS,
    "row_multiplier": TRAINED_ROWS,
    "col_multiplier": COLUMN_CHOICES,
    "activation_bits": (None, 8),
}


def options_of(entry: Mapping[str, Any]) -> QuantizationOptions:
    """The options that config.json's ``fairy2i`` entry describes, as :func:`~fairy2i_export.train.config_entry` writes it.

    Raises:
        OptionError: a value that is unknown, or weights that are dequantized already.
    """
    if entry.get("latent", True) is not True:
        raise OptionError(
            'config.json: fairy2i: "latent" is not true: these weights are dequantized already and cannot be trained further; '
            "start from the latent weights"
        )
    known = {field.name for field in fields(QuantizationOptions)}
    values = {key: value for key, value in entry.items() if key in known}
    try:
        return QuantizationOptions(**values, learned_scales=entry.get("scales", "computed") == "learned")
    except OptionError as error:
        raise OptionError(f"config.json: fairy2i: {error}") from error
