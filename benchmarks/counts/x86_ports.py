"""What the x86 kernels are bound by: llvm-mca's estimate of their inner loops, port by port.

    python benchmarks/counts/x86_ports.py BUILD [--mca llvm-mca-19] [--cpu sapphirerapids] [--ghz 2.0]

BUILD is a build of custom_ops. Estimates assume data in the first-level cache and nothing but the loop: sums of a K-block that
become floats behind it are not in, nor is anything that memory takes. "per line" is for 64 bytes of packed codes (256 weights at
2 bits) and one row of x; GB/s is how fast a core at that clock would pass over packed codes if the loop were all.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from counts.loops import Body, innermost_loops, run_mca

FILES = {  # kernel: object
    "lut/avx512": "avx512/lut/lut_avx512",
    "lut/avx512, panel": "avx512/lut/lut_avx512_panel",
    "lut/avx2": "avx2/lut_avx2",
    "lut/avx2, panel": "avx2/lut_avx2_panel",
    "dot/avx512_vbmi": "avx512/dot/dot_avx512_vbmi",
    "dot/avx512": "avx512/dot/dot_avx512",
    "dot/avx512, panel": "avx512/dot/dot_avx512_panel",
}
LINE = 256  # weights of 64 bytes
PORTS = {  # Intel's, then AMD's: vector pipes, whose vectors of 64 bytes take two cycles each on Zen 4
    "p0": r"Port0?0$",
    "p1": r"Port0?1$",
    "p5": r"Port0?5$",
    "loads": r"Port(0?2|0?3|11)$|Zn\dLoad$",
    **{f"fp{number}": rf"Zn\dFP{number}$" for number in range(4)},
}


def weights_of(kernel: str, body: Body) -> int:
    """Weights times rows of x of an iteration, by what a look-up covers at two stages, or a dot product at any."""
    zmm = [op for op, operands in body if "%zmm" in operands]
    ymm = [op for op, operands in body if "%ymm" in operands and "%zmm" not in operands]
    if kernel.startswith("dot"):  # of 64 real weights, U and W and all stages added up
        return 64 * zmm.count("vpdpbusd")
    if kernel == "lut/avx2, panel":  # an entry for 8 rows of x, added where it lies; four bits are two weights
        return 16 * sum(op == "vpaddw" and "(" in operands for op, operands in body)
    if kernel.endswith("panel"):  # an entry for 32 rows of x
        return 64 * sum(op == "movzwl" for op, _ in body)
    # indices of 64 (32) nibbles meet two tables, real and imaginary output
    return 64 * zmm.count("vpshufb") + 32 * ymm.count("vpshufb")


def busy_ports(units: dict[str, float], cycles: float) -> str:
    """Share of the time that ports work, of those that the processor has; vectors of 64 bytes only go to Intel's p0 and p5."""
    shares = []
    for port, pattern in PORTS.items():
        used = [work for unit, work in units.items() if re.search(pattern, unit)]
        if used:
            shares.append(f"{port} {100 * sum(used) / len(used) / cycles:.0f} %")
    return ", ".join(shares)


def main(
    build: Annotated[Path, typer.Argument(help="A build folder of custom_ops, with its object files.")],
    mca: Annotated[str, typer.Option(help="An llvm-mca that knows the processor.")] = "llvm-mca-19",
    cpu: Annotated[str, typer.Option(help="LLVM's name of the processor.")] = "sapphirerapids",
    ghz: Annotated[float, typer.Option(help="Its clock with 512-bit vectors.")] = 2.0,
) -> None:
    """Print cycles and port use of every inner loop that looks up or multiplies."""
    objects = build / "CMakeFiles/fairy2i_ops.dir/src/kernels/x86"
    if not objects.is_dir():
        raise typer.BadParameter(
            f"{build}: expected a build folder: cmake -S custom_ops -B {build} && cmake --build {build}"
        )
    if shutil.which(mca) is None:
        raise typer.BadParameter(f"--mca {mca}: not found; install llvm, or name another llvm-mca of LLVM 17 or later")
    table = Table("kernel", "instructions", "weights", "cycles", "cycles / line", "busy", f"GB/s at {ghz:g} GHz", title=cpu)
    for kernel, name in FILES.items():
        path = objects / f"{name}.c.o"
        loops = [body for symbol, body in innermost_loops(path, "objdump", "j") if "build" not in symbol]
        found = {(weights_of(kernel, body), len(body)): body for body in loops}
        for (weights, count), body in sorted(found.items()):
            if weights < LINE:
                continue
            cycles, units = run_mca(mca, body, "-mtriple=x86_64", f"-mcpu={cpu}")
            per_line = cycles / weights * LINE
            cells = [kernel, str(count), str(weights), f"{cycles:.1f}", f"{per_line:.1f}"]
            table.add_row(*cells, busy_ports(units, cycles), f"{64 / per_line * ghz:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
