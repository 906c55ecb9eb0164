"""The inner loops of the NEON kernels: no multiplications in "lut", and llvm-mca's estimate of their speed.

    inner_loops.py BUILD                     check only (BUILD: a cross build of custom_ops)
    inner_loops.py BUILD --mca llvm-mca-19   also estimate cycles per weight and tokens per second

Estimates assume data in the first-level cache and nothing but the loop; they come from compiler scheduling models, not
from a processor. llvm-mca models Cortex-A76 as a Cortex-A57; the model of its sibling Neoverse N1 is used instead.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from counts.loops import innermost_loops, run_mca

OBJDUMP = "aarch64-linux-gnu-objdump"
FILES = {  # object, and the function with the loops; the number is of the rows of x that a panel takes
    "lut/neon": ("lut_neon", "f2i_block_lut__neon"),
    "lut/neon82": ("lookup_neon82", "f2i_block_lut__neon82"),
    "lut/neon, 8": ("lut_neon_panel", "f2i_block_lut__neon_8_panel"),
    "lut/neon, 16": ("lut_neon_panel", "f2i_block_lut__neon_16_panel"),
    "lut/neon, 32": ("lut_neon_panel", "f2i_block_lut__neon_32_panel"),
    "exact/neon": ("exact_neon", "f2i_block_exact__neon"),
    "exact/neon82": ("lookup_neon82", "f2i_block_exact__neon82"),
    "dot/neon82": ("dot_neon82", "f2i_block_dot__neon82"),
    "dot/neon82, 64": ("dot_neon82", "multiply_rows"),
    "dot/neon86": ("dot_neon86", "f2i_block_dot__neon86"),
    "dot/neon86, 64": ("dot_neon86", "multiply_rows"),
}
MULTIPLY = re.compile(
    r"f?n?m(ul|add|sub|la|ls|neg)|[su]m(ul|la|ls|add|sub|neg)|sq\w*mul|sqdml|sqrdml|pmul|\w*dot|\w*mmla|bfml"
)
CORES = {  # model, GHz, GB/s of memory
    "cortex-a53": ("cortex-a53", 1.4, 2.0),
    "cortex-a72": ("cortex-a72", 1.8, 4.0),
    "cortex-a76": ("neoverse-n1", 2.4, 10.0),
    "neoverse-n2": ("neoverse-n2", 3.0, 20.0),
}
OLDEST = {"neon": "cortex-a53", "neon82": "cortex-a76", "neon86": "neoverse-n2"}  # the first of them that runs an ISA
WEIGHTS_7B = 6.607e9
BYTES_7B = WEIGHTS_7B / 4


@dataclass(frozen=True)
class Loop:
    """An innermost loop: instructions as (mnemonic, operands)."""

    function: str
    body: list[tuple[str, str]]

    def weights(self, kernel: str) -> float:
        """Weights times rows of x that one iteration treats, by what each look-up or dot product covers."""
        lookups = sum(8 if ".8b" in operands.split(",")[0] else 16 for op, operands in self.body if op == "tbl")
        if kernel.startswith("dot"):  # products of int8, one for each weight
            return sum({"sdot": 16, "smmla": 32}.get(op, 0) for op, _ in self.body)
        if "," in kernel:  # entries that are loaded, and added by halves
            return 8 * sum(op in ("uaddw", "uaddw2") for op, _ in self.body)
        return lookups / 3 if kernel.startswith("exact") else lookups


def loops(path: Path) -> Iterator[Loop]:
    """Innermost loops of an object file that look something up or, where weights are unpacked elsewhere, multiply."""
    for function, body in innermost_loops(path, OBJDUMP, r"b(\.|$)|cbn?z|tbn?z"):
        if sum(op in ("tbl", "uaddw2", "sdot", "smmla") for op, _ in body) >= 8:
            yield Loop(function, body)


def check(kernel: str, loop: Loop) -> list[str]:
    """What is wrong with a loop."""
    problems = []
    multiplications = [op for op, _ in loop.body if MULTIPLY.match(op)]
    if multiplications and not kernel.startswith("dot"):
        problems.append(f"{kernel}: {loop.function} multiplies: {' '.join(sorted(set(multiplications)))}")
    spilled = sum("[sp" in operands for _, operands in loop.body)
    if spilled > len(loop.body) // 16 and kernel.startswith("lut"):  # a few constants may be
        problems.append(f"{kernel}: {loop.function} keeps {spilled} operands of its inner loop on the stack")
    return problems


def estimate(mca: str, loop: Loop, model: str) -> tuple[float, str]:
    """Cycles per iteration, and the share of the vector units' time that is taken."""
    cycles, pressure = run_mca(mca, loop.body, "-mtriple=aarch64", "-mattr=+dotprod,+i8mm", f"-mcpu={model}")
    busiest = sorted(((p, unit.partition("Unit")[2]) for unit, p in pressure.items()), reverse=True)[:2]
    names = {"W": "F0", "X": "F1"}  # the manual's names of the A72's two vector pipes
    return cycles, " ".join(f"{names.get(u, u)} {100 * p / cycles:.0f} %" for p, u in busiest)


def main() -> int:
    """Check the loops, and print the estimates if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--mca", help="an llvm-mca of LLVM 17 or later")
    arguments = parser.parse_args()
    problems = []
    found: dict[str, list[Loop]] = {}
    for kernel, (name, function) in FILES.items():
        path = arguments.build / "CMakeFiles/fairy2i_ops.dir/src/kernels/arm" / f"{name}.c.o"
        of_function = [loop for loop in loops(path) if loop.function == function]
        found[kernel] = [loop for loop in of_function if loop.weights(kernel) > 0]  # "dot" has loops that only unpack
        problems += [] if found[kernel] else [f"{kernel}: no inner loop found"]
        for loop in found[kernel]:
            problems += check(kernel, loop)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{sum(map(len, found.values()))} inner loops checked, {len(problems)} problems")
    if arguments.mca:
        print(
            "core        kernel      per iteration: instr  weights  cycles  cycles/weight  busiest        1 core   4 cores  memory"
        )
        for core, (model, ghz, gbs) in CORES.items():
            for kernel, of_kernel in found.items():
                rows = {}
                for loop in of_kernel:
                    if list(CORES).index(core) >= list(CORES).index(OLDEST[re.split("[/,]", kernel)[1]]):
                        rows[loop.weights(kernel), len(loop.body)] = loop
                for (weights, count), loop in sorted(rows.items()):
                    cycles, busiest = estimate(arguments.mca, loop, model)
                    tokens = ghz * 1e9 / (cycles / weights) / WEIGHTS_7B
                    print(
                        f"{core:11} {kernel:12} {count:18} {weights:8.0f} {cycles:7.1f} {cycles / weights:14.4f}  {busiest:14} "
                        f"{tokens:7.2f} {4 * tokens:9.2f} {gbs * 1e9 / BYTES_7B:7.2f}   "
                        f"{dict(Counter(op for op, _ in loop.body).most_common(5))}"
                    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
