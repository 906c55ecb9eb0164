"""The options that all front ends have: how matrices are quantized, and which."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fairy2i_export.codes.choices import (
    COMPLEX_QUANTIZER,
    DEFAULTS,
    PROFILES,
    ROW_MULTIPLIERS,
    TRAINED_ROWS,
    Profile,
    RowChoice,
)
from fairy2i_export.codes.strategies import QUANTIZERS, STRATEGIES
from fairy2i_export.request.option import option

_METHOD = "Method"  # heading in the help of training


def _trained(key: str) -> str:
    """The default of what training decides, in words."""
    return f"as trained, else {DEFAULTS[key]}"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How matrices are quantized, and which. None (or no glob): not asked for; then a model's own training decides."""

    stages: int = option(
        None,
        "Residual stages, 1 to 4: bits per weight.",
        metavar="N",
        fallback=DEFAULTS["stages"],
        shown=_trained("stages"),
        panel=_METHOD,
    )
    profile: Profile = option(
        None,
        f"Numeric profile of the quantizer: {' or '.join(PROFILES)}.",
        metavar="P",
        choices=PROFILES,
        fallback=DEFAULTS["profile"],
        shown=_trained("profile"),
        panel=_METHOD,
    )
    quantizer: str = option(
        None,
        f"How codes are chosen: {'; '.join(f'{name}: {strategy.about}' for name, strategy in STRATEGIES.items())}.",
        metavar="Q",
        choices={"checkpoint": (*QUANTIZERS, COMPLEX_QUANTIZER), "training": QUANTIZERS, "onnx": QUANTIZERS},
        fallback=DEFAULTS["quantizer"],
        shown=_trained("quantizer"),
        panel=_METHOD,
    )
    row_multiplier: RowChoice = option(
        None,
        "One factor per output row: none, rms (computed from the weights) or learned (if the model was trained so).",
        metavar="M",
        choices={"checkpoint": TRAINED_ROWS, "training": TRAINED_ROWS, "onnx": ROW_MULTIPLIERS},
        fallback=DEFAULTS["row_multiplier"],
        shown=_trained("row_multiplier"),
        panel=_METHOD,
    )
    include: tuple[str, ...] = option(
        (), "Quantize only linear layers with such names; may be repeated.", metavar="GLOB", shown="all", panel=_METHOD
    )
    exclude: tuple[str, ...] = option(
        (), "Leave linear layers with such names float; may be repeated.", metavar="GLOB", shown="none", panel=_METHOD
    )

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, by name; None where nothing was."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
