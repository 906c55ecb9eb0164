"""Bytes: what a process took, what people read, what an export is going to need."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fairy2i_runtime.measure.memory import human_bytes

__all__ = ["Estimate", "human_bytes", "peak_ram_bytes"]


@dataclass(frozen=True)
class Estimate:
    """What an export is going to need, from tensor headers alone."""

    peak_ram_bytes: int
    output_bytes: int


def peak_ram_bytes() -> int | None:
    """Largest resident size of this process so far, None where the system does not tell."""
    try:
        # the kernel's own figure: ru_maxrss below starts from the size of the parent process on Linux
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
