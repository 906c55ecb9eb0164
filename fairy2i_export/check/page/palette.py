"""The shades of the heat maps: colour ramps for light and dark pages, interpolated in OKLab so that steps look equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHADES = 24
# from "little" to "much"; on a light page much is dark, on a dark page much is bright
LIGHT = ("#fdf3e1", "#fbc687", "#ec7d7a", "#a944a6", "#5a2a9c", "#2a1463")
DARK = ("#20223a", "#43339a", "#8d3fc4", "#e0607e", "#fba85f", "#fdf0c8")

F64 = npt.NDArray[np.float64]
# linear sRGB -> cone responses, and their cube roots -> OKLab (Ottosson 2020)
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def ramp(stops: tuple[str, ...], count: int = SHADES) -> list[str]:
    """``count`` colours ``#rrggbb`` from the first stop to the last."""
    known = np.array([_to_lab(stop) for stop in stops])
    at = np.linspace(0, len(stops) - 1, count)
    lab = np.stack([np.interp(at, np.arange(len(stops)), known[:, axis]) for axis in range(3)], axis=1)
    return [_to_hex(colour) for colour in lab]


def shade(value: float, low: float, high: float) -> int:
    """Which of the shades a value gets on a scale from ``low`` to ``high``."""
    place = 0.5 if high <= low else (value - low) / (high - low)
    return round(min(1.0, max(0.0, float(np.nan_to_num(place, nan=1.0)))) * (SHADES - 1))


def _to_lab(colour: str) -> F64:
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(_TO_LAB @ np.cbrt(_TO_LMS @ linear))


def _to_hex(lab: F64) -> str:
    linear = np.clip(np.linalg.solve(_TO_LMS, np.linalg.solve(_TO_LAB, lab) ** 3), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in srgb)
