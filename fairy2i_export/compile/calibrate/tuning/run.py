"""The loop of tuning: some steps of AdamW on a few windows of the text each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.compile.calibrate.store import Tuned
from fairy2i_export.compile.calibrate.tuning.divergence import divergence
from fairy2i_export.compile.calibrate.tuning.student import Student
from fairy2i_export.errors import WeightError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes of the text, if it is not too long for so many.
        rate: of AdamW, at its peak, for one or two stages; parameters are logarithms, so this is a share of a factor per step.
        windows: of a step.
        most: windows of all passes together; of a text that has more some are used, evenly spread ...
        share: ... at least this share of them: :meth:`for_text` turns it into windows.
        warmup: steps in which the rate rises; then it falls along a cosine.
    """

    epochs: int = 1
    rate: float = 6e-3
    windows: int = 2
    most: int = 192
    share: float = 0.0
    warmup: int = 3

    def for_stages(self, mean: float) -> Schedule:
        """The same, its rate for layers of so many stages on average: what is nearer to the float model has less far to go."""
        return replace(self, rate=self.rate * min(1.0, 2 / mean) ** 2)

    def for_text(self, windows: int) -> Schedule:
        """The same without a share, for a text of so many windows: those that are used can be counted again then."""
        return replace(self, most=max(self.most, int(self.share * windows)), share=0.0)

    def steps(self, windows: int) -> int:
        """For a text of so many windows."""
        return max(1, self.passes(windows) // self.windows)

    def passes(self, windows: int) -> int:
        """How many windows are run in all, some of them more than once."""
        return min(self.epochs * windows, self.most)

    def used(self, windows: int) -> npt.NDArray[np.int64]:
        """Which of so many windows are used, in order."""
        count = min(windows, self.most)
        return np.arange(count) * windows // count


def tune(
    student: Student,
    teacher: Any,
    ids: npt.NDArray[np.int64],
    softcap: float | None,
    schedule: Schedule,
    done: Callable[[], None],
) -> Tuned:
    """Bring the student's predictions nearer to the float model's.

    Args:
        student: the quantized model; its parameters change.
        teacher: torch [windows, length, hidden], the float model's hidden states after the final norm.
        ids: token ids [windows, length].
        softcap: of the logits, or None.
        schedule: how long and how fast.
        done: called after every step.

    Raises:
        WeightError: if the loss is not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    epochs = [torch.randperm(len(ids), generator=generator) for _ in range(schedule.epochs)]
    order, steps = torch.cat(epochs)[: schedule.passes(len(ids))], schedule.steps(len(ids))
    optimizer = torch.optim.AdamW(student.parameters(), lr=schedule.rate, betas=(0.9, 0.95), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps, schedule.warmup))
    size = max(1, len(order) // steps)
    for step in range(steps):
        optimizer.zero_grad()
        for window in order[step * size : (step + 1) * size].tolist():
            hidden = student.hidden(ids[window : window + 1]).flatten(0, 1)
            loss = divergence(
                hidden, teacher[window].float(), student.head, student.float_head, softcap, student.head_factor
            )
            if not math.isfinite(float(loss.detach())):
                raise WeightError("the loss of tuning is not finite; leave tuning out (--calibrate-without tuning)")
            (loss / size).backward()
        optimizer.step()
        rates.step()
        done()
    return student.tuned()


def _share(step: int, steps: int, warmup: int) -> float:
    """Of the peak rate."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    return rising * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
