"""What every quantizer of the project shares: what codes stand for, the rounding of a numeric profile, the floor of scales."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from fairy2i_export.codes.choices import PROFILES
from fairy2i_export.codes.native import F32
from fairy2i_export.errors import OptionError

Rounding = Callable[[F32], F32]

SCALE_FLOOR = 1e-6  # smallest scale; the reference clamps the mean of an empty axis to it

# code k stands for i^k: (re, im) of 1, i, -1, -i
CODE_RE = np.array([1, 0, -1, 0], dtype=np.float32)
CODE_IM = np.array([0, 1, 0, -1], dtype=np.float32)


def round_to_bf16(x: F32) -> F32:
    """Round float32 values to the nearest bfloat16 (ties to even) and return them as float32, any shape."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def keep(x: F32) -> F32:
    """The rounding of the profile fp32: none."""
    return x


def rounding_of(profile: str) -> Rounding:
    """The rounding that ``profile`` applies after every arithmetic step.

    Raises:
        OptionError: if the profile is unknown.
    """
    if profile == "bf16-reference":
        return round_to_bf16
    if profile == "fp32":
        return keep
    raise OptionError(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")


def floored(scales: F32, rnd: Rounding) -> F32:
    """Scales as the profile rounds them, none below the floor."""
    return np.maximum(rnd(np.asarray(scales, np.float32)), rnd(np.full(1, SCALE_FLOOR, np.float32)))
