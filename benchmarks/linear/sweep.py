"""The memory floor: a read-only sweep over bytes, by threads that do nothing else (sweep.c, compiled when first needed)."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
STREAMS = (1, 2, 4, 8, 16)  # address streams per thread that sweep.c knows
DECLARATIONS = """
typedef struct sweeper sweeper;
sweeper *sweep_start(int threads);
void sweep_stop(sweeper *s);
uint64_t sweep_run(sweeper *s, const uint8_t *bytes, size_t size, int streams, int adds);
"""


class BenchmarkError(Exception):
    """The benchmark cannot run here; the message says what to do."""


def compiler(what: str) -> list[str]:
    """The C compiler as a command.

    Raises:
        BenchmarkError: there is none; ``what`` needs it.
    """
    given = os.environ.get("CC")
    for command in map(str.split, [given] if given else ["gcc", "cc"]):
        if shutil.which(command[0]) is not None:
            return command
    raise BenchmarkError(f"{what} needs a C compiler: install gcc, or set CC{f', which is {given}' if given else ''}")


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any]:
    command = compiler("the memory floor")
    source = Path(__file__).with_name("sweep.c")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.so"
        command += ["-O3", "-march=native", "-shared", "-fPIC", "-pthread", str(source), "-o", str(path)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise BenchmarkError(f"cannot compile {source.name}: {built.stderr.strip()}")
        ffi = cffi.FFI()
        ffi.cdef(DECLARATIONS)
        return ffi, ffi.dlopen(str(path))


class Sweeper:
    """Threads that read memory. Idle threads sleep.

    Args:
        threads: including the calling one.
    """

    def __init__(self, threads: int) -> None:
        ffi, lib = _library()
        handle = lib.sweep_start(threads)
        if handle == ffi.NULL:
            raise BenchmarkError(f"cannot start {threads} threads")
        self._handle = ffi.gc(handle, lib.sweep_stop)

    def run(self, data: U8, streams: int = 4, *, adds: bool = False) -> int:
        """Read all bytes of ``data`` (a multiple of 8 of them) and return the XOR of their 64-bit words.

        With ``adds`` each 64 bytes also go through 16 vector additions and XORs.
        """
        if streams not in STREAMS or data.size % 8 != 0:
            raise ValueError(f"expected streams in {STREAMS} and a multiple of 8 bytes, got {streams} and {data.size}")
        ffi, lib = _library()
        return int(lib.sweep_run(self._handle, ffi.from_buffer("uint8_t[]", data), data.size, streams, adds))

    def close(self) -> None:
        """End the threads."""
        ffi, _ = _library()
        ffi.release(self._handle)


def checksum(data: U8) -> int:
    """What :meth:`Sweeper.run` has to return."""
    return int(np.bitwise_xor.reduce(data.view(np.uint64))) if data.size else 0


def huge_buffer(size: int) -> U8:
    """Anonymous memory in huge pages where the system has them, every page written (unwritten ones share a zero page)."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    data[:] = 0x5A
    return data


def last_level_cache() -> int:
    """Bytes of the largest cache of processor 0; 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes)
