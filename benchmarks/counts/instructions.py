"""Instructions per weight of every kernel that valgrind can run, as a measure without noise: instructions.json holds them.

A layer with K = 1024 is called with two numbers of outputs under ``valgrind --tool=callgrind``, which counts what is
executed inside ``f2i_matmul``. The difference of the two counts divided by the difference in weights and by M is the cost
of a weight for one row of activations; what is left of a count is the cost of building the tables, given per activation.
Valgrind 3.19 emulates a processor without AVX-512, so those kernels are not in the list.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fairy2i_runtime import core, library_path
from fairy2i_runtime.ops.library import library_folder

RECORDED = Path(__file__).with_name("instructions.json")
INPUTS = 1024
OUTPUTS = (8192, 16384)  # so large that the strips of rows that a thread works on have their full height
OUTPUTS_SCALAR = (512, 1024)  # strips make no difference to it, and it takes long
ROWS = (1, 8)
WRONG_KERNEL = 3  # exit code of call_once.c


class CountError(Exception):
    """Instructions cannot be counted here; the message says why."""


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fairy2i_count_")


@lru_cache(maxsize=1)
def _program() -> Path:
    headers = [f"-I{folder}" for folder in (Path(library_path()).parent, library_folder())]
    program = Path(_folder().name) / "call_once"
    compiler = os.environ.get("CC", "gcc").split()
    source = str(Path(__file__).with_name("call_once.c"))
    built = subprocess.run(
        [*compiler, "-O1", *headers, source, "-o", str(program), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise CountError(f"cannot compile call_once.c: {built.stderr.strip()}")
    return program


def compiler_of(library: str) -> str:
    """What compiled the library, as its .comment section says; "unknown" without it."""
    found = re.search(rb"(GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)", Path(library).read_bytes())
    return found.group(0).decode() if found else "unknown"


def count(family: str, isa: str, n: int, k: int, rows: int) -> int | None:
    """Instructions executed in one call of f2i_matmul; None if valgrind's processor cannot run the kernel.

    Raises:
        CountError: if valgrind or a compiler is missing, or the call fails.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CountError("valgrind is missing: apt-get install valgrind")
    command = [
        valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no",
        "--toggle-collect=f2i_matmul", str(_program()), library_path(), family, isa, str(n), str(k), str(rows),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FAIRY2I_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode == WRONG_KERNEL:
        return None
    if done.returncode != 0 or collected is None or int(collected.group(1)) == 0:
        raise CountError(f"valgrind counted nothing for {family} {isa}: {done.stderr.strip()[-500:]}")
    return int(collected.group(1))


def per_weight(family: str, isa: str, rows: int) -> dict[str, Any] | None:
    """The record of one kernel and M, or None if valgrind's processor cannot run the kernel."""
    outputs = OUTPUTS_SCALAR if isa == "scalar" else OUTPUTS
    counts = [count(family, isa, n, INPUTS, rows) for n in outputs]
    if counts[0] is None or counts[1] is None:
        return None
    weight = (counts[1] - counts[0]) / (INPUTS * (outputs[1] - outputs[0]) * rows)
    build = (counts[0] - weight * INPUTS * outputs[0] * rows) / (INPUTS * rows)
    return {
        "kernel": family, "isa": isa, "M": rows,
        "instructions_per_weight": round(weight, 5), "instructions_per_activation": round(build, 2),
    }  # fmt: skip


def recorded() -> dict[str, Any]:
    """The contents of instructions.json: compiler, valgrind, and the records."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def main(
    write: Annotated[bool, typer.Option("--write", help="Record the counts in instructions.json.")] = False,
) -> None:
    """Count instructions per weight of all kernels."""
    console = Console()
    table = Table("kernel", "ISA", "M", "instructions / weight", "building / activation", title="callgrind")
    records = []
    try:
        for kernel in core.kernels():
            for rows in ROWS:
                record = per_weight(kernel.family, kernel.isa, rows)
                if record is None:
                    console.print(f"{kernel.family} {kernel.isa}: valgrind's processor does not run it", style="dim")
                    break
                records.append(record)
                table.add_row(*(str(value) for value in record.values()))
    except CountError as error:
        Console(stderr=True).print(f"instructions: error: {error}", highlight=False)
        raise typer.Exit(2) from error
    console.print(table)
    if write:
        version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        result = {"compiler": compiler_of(library_path()), "valgrind": version, "records": records}
        RECORDED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
