"""Learning rate schedules, as factors on the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fairy2i_export.train.recipe import Schedule

PAPER_STEPS = 30_000  # of the published run; for another length its corners move in proportion


@dataclass(frozen=True)
class Shape:
    """The numbers that bend a schedule.

    Attributes:
        steps: of the whole run.
        warmup: steps of linear warm-up.
        decay: share of the run in which ``wsd`` goes down.
        minimum: final factor of ``wsd`` and ``cosine``.
    """

    steps: int
    warmup: int = 0
    decay: float = 0.2
    minimum: float = 0.0


def wsd(step: int, shape: Shape) -> float:
    """Warm-up, stable, decay: linear up, constant, cosine down in the last share of the run."""
    start = shape.steps - round(shape.decay * shape.steps)
    return _warm(step, shape) if step < start else _slide(step, start, shape.steps, 1.0, shape.minimum)


def cosine(step: int, shape: Shape) -> float:
    """Linear warm-up, then half a cosine down to the minimum."""
    if step < shape.warmup:
        return _warm(step, shape)
    return _slide(step, shape.warmup, shape.steps, 1.0, shape.minimum)


def constant(step: int, shape: Shape) -> float:
    """Linear warm-up, then the peak."""
    return _warm(step, shape)


def paper(step: int, shape: Shape) -> float:
    """The published schedule: warm-up, and two cosine slides to 1/6 and 1/30 with plateaus between them.

    For 30,000 steps: linear up in 300; 1 until 8,000; down to 0.1667 at 10,000; held until 19,000; down to 0.0333 at 20,000.
    """
    first, second, third, fourth, fifth = (at * shape.steps / PAPER_STEPS for at in (300, 8_000, 10_000, 19_000, 20_000))
    if step < first:
        return step / first
    if step < second:
        return 1.0
    if step < third:
        return _slide(step, second, third, 1.0, 0.1667)
    if step < fourth:
        return 0.1667
    return _slide(step, fourth, fifth, 0.1667, 0.0333)


SCHEDULES: dict[Schedule, Callable[[int, Shape], float]] = {
    "wsd": wsd,
    "paper": paper,
    "cosine": cosine,
    "constant": constant,
}


def _warm(step: int, shape: Shape) -> float:
    """The first step already learns: a rate of zero would waste it."""
    return min(1.0, (step + 1) / (shape.warmup + 1))


def _slide(step: float, start: float, end: float, top: float, bottom: float) -> float:
    done = min(1.0, (step - start) / max(end - start, 1e-9))
    return bottom + (top - bottom) * 0.5 * (1 + math.cos(math.pi * done))
