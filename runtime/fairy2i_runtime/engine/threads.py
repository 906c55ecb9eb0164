"""How many threads to use when the caller does not say.

Token generation waits for memory and for the slowest thread, so one thread per physical core is best, and on processors
with big and little cores one per big core: a little core makes every big one wait. A core counts as big if its highest clock
is at least 80 % of the fastest core's. Only cores that this process may run on are counted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

from fairy2i_runtime.errors import Fairy2iWarning, check_option

MOST_THREADS = 1024
BIG_CORE_CLOCK = 0.8  # of the fastest core's; RK3588, Raspberry Pi, Snapdragon and Intel hybrids all fall clear of it
ORT_DEFAULT = 0  # what onnxruntime takes as "decide yourself": one thread per physical core


def default_threads(sysfs: Path = Path("/sys"), allowed: Iterable[int] | None = None) -> int:
    """Number of threads for onnxruntime: physical big cores on Linux, 0 (onnxruntime's own default) where that is unknown.

    Args:
        sysfs: root of the sysfs tree.
        allowed: numbers of the logical processors that may be used; default: those this process may run on.
    """
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = affinity(0) if affinity else ()
    cores: dict[tuple[int, int], int] = {}  # (package, core) -> highest clock in kHz, 0 if unknown
    for cpu in allowed:
        folder = sysfs / f"devices/system/cpu/cpu{cpu}"
        package = _read_int(folder / "topology/physical_package_id")
        core = _read_int(folder / "topology/core_id")
        if package is None or core is None:
            return ORT_DEFAULT
        cores[package, core] = _read_int(folder / "cpufreq/cpuinfo_max_freq") or 0
    fastest = max(cores.values(), default=0)
    return sum(clock >= BIG_CORE_CLOCK * fastest for clock in cores.values())


def processors() -> int:
    """Number of logical processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_threads(threads: int) -> None:
    """Check a number of threads that somebody chose.

    More threads than processors are allowed and warned of: they wait for each other at every layer, which makes a model many
    times slower.

    Raises:
        OptionError: if it is out of range.
    """
    check_option("threads", threads, Integral, lambda n: 1 <= n <= MOST_THREADS, f"an integer from 1 to {MOST_THREADS}")
    if threads > (available := processors()):
        warnings.warn(
            f"{threads} threads on {available} processor{'s' if available > 1 else ''}: more threads than processors are much "
            f"slower than {available}",
            Fairy2iWarning,
            stacklevel=2,
        )


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
