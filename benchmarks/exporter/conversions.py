"""The exporter as a process of its own, and what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

# by the packages that are imported here, wherever this is started
_EXPORT = (sys.executable, "-P", "-c", "import sys; from fairy2i_export.commands.export import main; sys.exit(main())")


def convert(arguments: Sequence[object]) -> dict[str, float]:
    """Run the exporter quietly: wall and processor seconds, and the most memory it had.

    Args:
        arguments: of its command line.

    Raises:
        SystemExit: it failed.
    """
    command = [*_EXPORT, *map(str, arguments), "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[len(_EXPORT) :])} ended with {process.returncode}")
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
