"""How many vector operations of each kind this processor ends in a cycle, measured: what x86_ports.py takes from a model.

    python benchmarks/counts/x86_rates.py [--into docs/benchmarks.md]

Each row is a loop of independent operations, or of several kinds in turns, on registers and the first-level cache. Cycles are
those of a chain of additions, one of which ends in each, timed in turns with the rest. The least time of all turns counts. The
mixtures are those of the inner loop of "lut" with AVX-512 for two lines of codes and one row of x; a "line" is 64 bytes.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cffi
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quality"))

from marked import markdown_table, print_or_put

from fairy2i_runtime.ops.core import kernels
from fairy2i_runtime.ops.processor import processor_name
from linear.sweep import BenchmarkError, compiler

REPEATS, ROUNDS, TURNS = 240, 2000, 40  # operations of a loop, at most; times it runs; turns
# {d}: a register that nothing else reads; {at}: an offset into 1 KiB that %rsi points to
ADD, TERNARY = "vpaddw %zmm0, %zmm1, %zmm{d}", "vpternlogd $0x96, %zmm0, %zmm1, %zmm{d}"
SHUFFLE, SHIFT = "vpshufb %zmm0, %zmm1, %zmm{d}", "vpsrlw $8, %zmm1, %zmm{d}"
LOAD, REPEAT = "vmovdqu64 {at}(%rsi), %zmm{d}", "vbroadcasti64x4 {at}(%rsi), %zmm{d}"
_CELLS = [
    *(SHUFFLE, TERNARY, TERNARY, SHUFFLE, TERNARY, SHUFFLE, TERNARY, ADD, SHUFFLE, TERNARY, SHIFT, TERNARY, SHUFFLE),
    *(TERNARY, SHUFFLE, TERNARY, ADD, SHUFFLE, TERNARY, TERNARY, ADD, SHUFFLE, TERNARY, SHIFT, TERNARY, ADD),
]
CHAIN = "one addition after the other"
LOOPS: dict[str, list[str]] = {
    CHAIN: ["add $1, %rax"],
    "addition of 64 bytes": [ADD],
    "ternary operation of 64 bytes": [TERNARY],
    "shuffle of 64 bytes": [SHUFFLE],
    "shift of 64 bytes": [SHIFT],
    "load of 64 bytes": [LOAD],
    "load of 32 bytes, twice side by side": [REPEAT],
    "3 additions, such a load": [ADD, ADD, ADD, REPEAT],
    "3 additions, a load of 64 bytes": [ADD, ADD, ADD, LOAD],
    "two lines of `lut`: 8 shuffles, 12 ternary operations, 4 additions, 2 shifts": _CELLS,
    "the same and their loads, 4 of each kind": [
        op
        for i, cell in enumerate(_CELLS)
        for op in ((cell, (LOAD, REPEAT)[i // 3 % 2]) if i % 3 == 0 and i < 24 else (cell,))
    ],
    "addition of 32 bytes": ["vpaddw %ymm0, %ymm1, %ymm{d}"],
    "ternary operation of 32 bytes": ["vpternlogd $0x96, %ymm0, %ymm1, %ymm{d}"],
    "shuffle of 32 bytes": ["vpshufb %ymm0, %ymm1, %ymm{d}"],
}


def repeats(operations: list[str]) -> int:
    """How many operations a loop has: as many of each kind as are asked for."""
    return REPEATS // len(operations) * len(operations)


def assembly(loops: dict[str, list[str]]) -> str:
    """A function ``loop_I(rounds, memory)`` for each."""
    lines = [".text"]
    for number, operations in enumerate(loops.values()):
        body = [operations[i % len(operations)].format(d=8 + i % 20, at=64 * (i % 16)) for i in range(repeats(operations))]
        lines += [f".globl loop_{number}", f"loop_{number}:", "1:", *body, "dec %rdi", "jnz 1b", "vzeroupper", "ret"]
    return "\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""])


def assembled(loops: dict[str, list[str]]) -> Any:
    """The functions, in a library."""
    ffi = cffi.FFI()
    ffi.cdef("".join(f"void loop_{number}(long rounds, void *memory);" for number in range(len(loops))))
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "loops.s", Path(folder) / "loops.so"
        source.write_text(assembly(loops), encoding="ascii")
        command = [*compiler("timing operations"), "-shared", str(source), "-o", str(library)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise BenchmarkError(f"cannot assemble: {built.stderr.strip()}")
        return ffi.dlopen(str(library))


def rates(turns: int = TURNS) -> dict[str, float]:
    """Operations in a cycle.

    Raises:
        BenchmarkError: if they cannot be measured here.
    """
    if not any(kernel.isa == "avx512" and kernel.available for kernel in kernels()):
        raise BenchmarkError(f"expected an x86-64 processor with AVX-512, found {platform.machine()}, {processor_name()}")
    functions, ffi = assembled(LOOPS), cffi.FFI()
    room = ffi.new("char[]", 2048)
    memory = room + -int(ffi.cast("uintptr_t", room)) % 64  # loads that cross no line
    best = dict.fromkeys(LOOPS, float("inf"))
    for _ in range(turns):
        for number, name in enumerate(LOOPS):
            begin = time.perf_counter()
            getattr(functions, f"loop_{number}")(ROUNDS, memory)
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: repeats(LOOPS[name]) / REPEATS * best[CHAIN] / seconds for name, seconds in best.items()}


def main(
    into: Annotated[Path | None, typer.Option(help="Markdown file with a marked place; default: print.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Of all loops.")] = TURNS,
) -> None:
    """Measure."""
    try:
        found = rates(turns)
    except BenchmarkError as error:
        sys.exit(str(error))
    rows = [[name, f"{rate:.2f}"] for name, rate in found.items() if name != CHAIN]
    print_or_put(into, {"x86-rates": [f"{processor_name()}.", "", *markdown_table(["operations", "in a cycle"], rows)]})


if __name__ == "__main__":
    typer.run(main)
