"""What can be chosen about quantization: the words of options, of config.json's entry ``fairy2i`` and of a model's metadata.

The names of quantizers are those of their table (strategies/); numbers and rules that belong to a word are in profiles.py.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from fairy2i_export.errors import OptionError

Profile = Literal["bf16-reference", "fp32"]
Method = Literal["fairy2i", "binary", "ternary"]
RowMultiplier = Literal["none", "rms"]  # those that are computed from a weight
RowChoice = Literal["none", "rms", "learned", "calibrated"]  # calibrated: found by calibration, not for callers to choose
ColumnChoice = Literal["none", "learned"]
ScaleChoice = Literal["computed", "learned"]
LmHead = Literal["fairy2i", "int8", "int4", "float"]
Effort = Literal["normal", "high"]  # of --calibrate
ConversionStep = Literal["rotation", "descent", "tuning"]  # what --calibrate does beside choosing codes, and can leave out

MAX_STAGES = 4
PROFILES: tuple[Profile, ...] = get_args(Profile)
METHODS: tuple[Method, ...] = get_args(Method)
BASELINES = METHODS[1:]  # of the training code, to compare with: their weights are no sums of codes
ROW_MULTIPLIERS: tuple[RowMultiplier, ...] = get_args(RowMultiplier)
TRAINED_ROWS: tuple[RowChoice, ...] = ("none", "rms", "learned")
COLUMN_CHOICES: tuple[ColumnChoice, ...] = get_args(ColumnChoice)
SCALE_CHOICES: tuple[ScaleChoice, ...] = get_args(ScaleChoice)
LM_HEADS: tuple[LmHead, ...] = get_args(LmHead)
EFFORTS: tuple[Effort, ...] = get_args(Effort)
CONVERSION_STEPS: tuple[ConversionStep, ...] = get_args(ConversionStep)
LEARNED: Literal["learned"] = "learned"

# what config.json's entry may say about a model, and what holds where neither it nor the caller says anything
DEFAULTS: dict[str, Any] = {
    "stages": 2,
    "profile": "bf16-reference",
    "quantizer": "greedy",
    "row_multiplier": "none",
    "lm_head": "fairy2i",
    "col_multiplier": "none",
    "scales": "computed",
}

COMPLEX_QUANTIZER = "ifairy"
# how models of complex weights are trained, which nobody else chooses for them
COMPLEX_METHOD: dict[str, Any] = DEFAULTS | {"stages": 1, "quantizer": COMPLEX_QUANTIZER, "lm_head": "float"}


class Choices(Protocol):
    """How a weight is quantized: the part of all kinds of options that says it."""

    @property
    def stages(self) -> int: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def quantizer(self) -> str: ...
    @property
    def row_multiplier(self) -> RowChoice: ...
    @property
    def col_multiplier(self) -> ColumnChoice: ...
    @property
    def scales(self) -> ScaleChoice: ...


def check_stages(value: Any, name: str = "stages") -> int:
    """A number of stages, of an option of that name.

    Raises:
        OptionError: anything but an integer from 1 to MAX_STAGES.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STAGES:
        raise OptionError(f"{name}: expected a number from 1 to {MAX_STAGES}, got {value!r}")
    return value


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """``value``, if it is among ``allowed``.

    Raises:
        OptionError: naming the option, what is allowed and what was found.
    """
    if value not in allowed:
        raise OptionError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
    return value
