"""Quantizers: how codes and scales of a matrix are chosen. A new one is a file here and a row below.

Format, bits and kernels are the same for all of them. Nothing outside this folder asks for a quantizer's name: what the rest of
the project has to know about one is a field of its :class:`Strategy`.
"""

from __future__ import annotations

from fairy2i_export.codes.strategies.base import Strategy
from fairy2i_export.codes.strategies.greedy import GREEDY
from fairy2i_export.codes.strategies.joint import JOINT

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (GREEDY, JOINT)}
QUANTIZERS: tuple[str, ...] = tuple(STRATEGIES)
CALIBRATED = JOINT  # calibration chooses codes for scales as this one does

__all__ = ["CALIBRATED", "GREEDY", "JOINT", "QUANTIZERS", "STRATEGIES", "Strategy"]
