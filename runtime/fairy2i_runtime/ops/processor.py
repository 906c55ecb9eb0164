"""The processor this runs on."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def processor_name() -> str:
    """As the system calls it; on ARM Linux the name of the board."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware"):
                return value.strip()
        return Path("/proc/device-tree/model").read_text().rstrip("\0\n")
    except OSError:
        return platform.processor() or platform.machine()
