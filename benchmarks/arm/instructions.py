"""Instructions per weight of the NEON kernels, counted under qemu-user; instructions.json holds them.

    instructions.py BUILD            compare with the recorded counts, exit with an error if one grew (BUILD: a cross build)
    instructions.py BUILD --write    record the counts

A layer is called with two numbers of outputs; the difference of the two counts, divided by the difference in weights and by
M, is the cost of a weight for one row of activations. Two numbers of inputs give the cost of building tables.
Instructions are not cycles: the counts guard against regressions and say nothing about the speed of a processor.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "instructions.json"
SYSROOT = "/usr/aarch64-linux-gnu"
KERNELS = [
    ("lut", "neon82"), ("lut", "neon"), ("exact", "neon82"), ("exact", "neon"), ("dot", "neon86"), ("dot", "neon82"),
    ("lut", "scalar"), ("exact", "scalar"), ("dot", "scalar"),
]  # fmt: skip
INPUTS, OUTPUTS, ROWS = (256, 512), (2048, 4096), (1, 8, 64)  # so large that strips of rows have their full height
TOLERANCE = 1.02  # another patch release of the compiler may schedule a little differently


class Counter:
    """Counts the instructions of single calls, with the library of a cross build."""

    def __init__(self, build: Path, folder: Path) -> None:
        self.library = build / "libfairy2i_ops.so"
        self.plugin, self.program = folder / "count_plugin.so", folder / "call_once"
        include = f"-I{HERE.parents[1] / 'custom_ops' / 'include'}"
        compile_plugin = ["gcc", "-O2", "-shared", "-fPIC", HERE / "count_plugin.c", "-o", self.plugin]
        subprocess.run(compile_plugin, check=True)
        source = HERE.parent / "counts" / "call_once.c"
        subprocess.run(["aarch64-linux-gnu-gcc", "-O1", include, source, "-o", self.program, "-ldl"], check=True)

    def count(self, family: str, isa: str, n: int, k: int, rows: int) -> int:
        """Instructions of the whole process."""
        command = [
            "qemu-aarch64", "-cpu", "max", "-L", SYSROOT, "-plugin", self.plugin,
            self.program, self.library, family, isa, str(n), str(k), str(rows),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"^instructions (\d+)$", done.stderr, re.M)
        if done.returncode != 0 or found is None:
            sys.exit(f"{family} {isa}: {done.stderr.strip()}")
        return int(found[1])

    def record(self, family: str, isa: str, rows: int) -> dict[str, object]:
        """Instructions per weight, and those of building the tables per activation."""
        narrow = self.count(family, isa, OUTPUTS[0], INPUTS[0], rows)
        small, large = (self.count(family, isa, n, INPUTS[1], rows) for n in OUTPUTS)
        weight = (large - small) / (INPUTS[1] * (OUTPUTS[1] - OUTPUTS[0]) * rows)
        build = (small - narrow) / ((INPUTS[1] - INPUTS[0]) * rows) - weight * OUTPUTS[0]
        return {
            "kernel": family, "isa": isa, "M": rows,
            "instructions_per_weight": round(weight, 4), "instructions_per_activation": round(build, 1),
        }  # fmt: skip


def main() -> int:
    """Count, then print, compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(arguments.build, Path(folder))
        records = [
            counter.record(*kernel, rows) for kernel in KERNELS for rows in ROWS if rows < 64 or kernel[1] != "scalar"
        ]
    old = json.loads(RECORDED.read_text(encoding="utf-8"))["records"] if RECORDED.exists() else []
    before = {(r["kernel"], r["isa"], r["M"]): r["instructions_per_weight"] for r in old}
    worse = 0
    for r in records:
        was = before.get((r["kernel"], r["isa"], r["M"]))
        grew = was is not None and r["instructions_per_weight"] > TOLERANCE * was
        worse += grew
        note = "" if was is None else f"   recorded {was:.4f}{'  GREW' if grew else ''}"
        print(
            f"{r['kernel']:6}{r['isa']:8} M={r['M']:<2} {r['instructions_per_weight']:8.4f} per weight "
            f"{r['instructions_per_activation']:7.1f} per activation{note}"
        )
    if arguments.write:
        version = subprocess.run(["aarch64-linux-gnu-gcc", "--version"], capture_output=True, text=True, check=True)
        result = {"compiler": version.stdout.splitlines()[0], "records": records}
        RECORDED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return 0
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
