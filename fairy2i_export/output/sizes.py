"""Bytes: what a process took, what people read, what an export is going to need."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


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


def human_bytes(count: float) -> str:
    """1234567 -> "1.2 MB" (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
