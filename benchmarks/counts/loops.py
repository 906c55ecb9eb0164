"""Innermost loops of object files, and llvm-mca's estimate of how long they take."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

Body = list[tuple[str, str]]  # instructions as (mnemonic, operands)
ITERATIONS = 200


def innermost_loops(path: Path, objdump: str, branch: str) -> Iterator[tuple[str, Body]]:
    """Function and body of every innermost loop: from the target of a backward branch to that branch.

    Args:
        path: an object file.
        objdump: the program, for the file's processor.
        branch: regular expression of the mnemonics that may branch backward.
    """
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    for function in re.split(r"\n(?=[0-9a-f]+ <)", text):
        name = re.match(r"[0-9a-f]+ <(.*)>:", function)
        lines = [
            (int(address, 16), op, re.split(r"\s*//|\s+# ", operands + " ")[0].strip())
            for address, op, operands in re.findall(r"^ +([0-9a-f]+):\t(\S+)[ \t]*(.*)$", function, re.M)
        ]
        back = []
        for address, op, operands in lines:
            target = re.search(r"\b([0-9a-f]+) <", operands)
            if target and re.match(branch, op) and int(target[1], 16) <= address:
                back.append((int(target[1], 16), address))
        for first, last in back:
            inside = any((a, b) != (first, last) and first <= a and b <= last for a, b in back)
            if name and not inside:
                yield name[1], [(op, operands) for address, op, operands in lines if first <= address <= last]


def run_mca(mca: str, body: Body, *options: str) -> tuple[float, dict[str, float]]:
    """Cycles per iteration, and of them those in which each unit of the processor works, by llvm-mca's names."""
    source = "\n".join(f"{op} {operands}" for op, operands in body if "<" not in operands)
    command = [mca, f"-iterations={ITERATIONS}", "-instruction-info=false", *options]
    text = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    cycles = float(re.findall(r"Total Cycles: +(\d+)", text)[0]) / ITERATIONS
    units = re.findall(r"^\[[\d.]+\] +- (\w+)", text, re.M)
    pressure = re.findall(r"Resource pressure per iteration:\n.*\n(.*)", text)[0].split()
    return cycles, {unit: 0.0 if p == "-" else float(p) for unit, p in zip(units, pressure, strict=True)}
