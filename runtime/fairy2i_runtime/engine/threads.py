"""How many threads to use when the caller does not say.

Token generation waits for memory and for the slowest thread, so one thread per physical core is best, and on processors
with big and little cores one per big core: a little core makes every big one wait. A core counts as big if its highest clock
is at least 80 % of the fastest core's. Only cores that this process may run on are counted, and no more than the time that a
container or service is granted amounts to.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

from fairy2i_runtime.engine.cgroup import cpu_quota
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
    quota = cpu_quota() if allowed is None else None
    cores = _physical_cores(sysfs, _allowed() or () if allowed is None else allowed)
    fastest = max(cores.values(), default=0)
    count = sum(clock >= BIG_CORE_CLOCK * fastest for clock in cores.values()) if cores else ORT_DEFAULT
    if quota is None:
        return count
    return min(count or processors(), _whole(quota))


def processors() -> int:
    """Number of logical processors that this process may use: those it may run on, and as many as its quota of time pays for."""
    return _available()[0]


def _available() -> tuple[int, str]:
    """The number of processors, and in brackets what makes it smaller than the machine's."""
    allowed, all_of_them, quota = _allowed(), os.cpu_count() or 1, cpu_quota()
    count = all_of_them if allowed is None else len(allowed)
    if quota is not None and _whole(quota) < count:
        return _whole(quota), f" (the control group grants the time of {quota:g})"
    return count, f" (of {all_of_them}, those this process may run on)" if count < all_of_them else ""


def _whole(quota: float) -> int:
    return max(1, math.ceil(quota))


def _allowed() -> set[int] | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else None


def _physical_cores(sysfs: Path, allowed: Iterable[int]) -> dict[tuple[int, int], int]:
    """(package, core) -> highest clock in kHz, 0 if unknown; empty where the system does not tell cores."""
    cores: dict[tuple[int, int], int] = {}
    for cpu in allowed:
        folder = sysfs / f"devices/system/cpu/cpu{cpu}"
        package = _read_int(folder / "topology/physical_package_id")
        core = _read_int(folder / "topology/core_id")
        if package is None or core is None:
            return {}
        cores[package, core] = _read_int(folder / "cpufreq/cpuinfo_max_freq") or 0
    return cores


def check_threads(threads: int) -> None:
    """Check a number of threads that somebody chose.

    More threads than processors are allowed and warned of: they wait for each other at every layer, which makes a model many
    times slower.

    Raises:
        OptionError: if it is out of range.
    """
    check_option("threads", threads, Integral, lambda n: 1 <= n <= MOST_THREADS, f"an integer from 1 to {MOST_THREADS}")
    warn_of_too_many(int(threads))


def warn_of_too_many(threads: int) -> None:
    """Warn if there are more threads than processors; once in a process, whoever asks for them."""
    available, why = _available()
    if threads > available:
        warnings.warn(
            f"{threads} threads on {available} processor{'s' if available > 1 else ''}{why}: more threads than processors are much "
            f"slower than {available}",
            Fairy2iWarning,
            stacklevel=1,  # this place, so that Python's filter knows it again
        )


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
