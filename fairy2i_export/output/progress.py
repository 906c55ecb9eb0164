"""Who hears how work goes on, and how many threads do it."""

from __future__ import annotations

import os
from typing import Protocol

from fairy2i_export.codes.choices import Choices
from fairy2i_export.errors import OptionError
from fairy2i_export.output.sizes import Estimate

MOST_THREADS = 1024


class Planned(Choices, Protocol):
    """Options of an export that are told before work begins."""

    @property
    def bits(self) -> float | None:
        """Average over layers whose stages differ, or None."""


class Observer:
    """Hears how the export goes on; the command line draws a progress bar from it. Every method may be left as it is."""

    def planned(self, estimate: Estimate, options: Planned) -> None:
        """Everything is checked, work begins."""

    def phase(self, title: str, total: int) -> None:
        """A phase of ``total`` units begins."""

    def advance(self, amount: int) -> None:
        """Units of the current phase are done."""

    def note(self, message: str) -> None:
        """Something the user may want to know, one sentence."""


def thread_count(jobs: int | None) -> int:
    """Threads to quantize with; None = as many as this process may use cores.

    Raises:
        OptionError: not a number from 1, or more threads than any machine has use for.
    """
    if jobs is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise OptionError(f"jobs: expected a number from 1, got {jobs!r}")
    if jobs > MOST_THREADS:
        raise OptionError(f"jobs: expected at most {MOST_THREADS} threads, got {jobs}")
    return jobs
