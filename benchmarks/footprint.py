"""What the runtime takes of a machine: bytes to download and on disk, time to start and to load, memory in a chat.

    python benchmarks/footprint.py --wheels FOLDER                  # a folder of wheels, as pip download leaves it
    python benchmarks/footprint.py --model DIR --model DIR2         # times: medians, with the smallest and largest
    python benchmarks/footprint.py --start 'qemu-aarch64 -L ROOT -plugin count_plugin.so VENV/bin/python'    # only the start

Needs fairy2i-runtime alone, installed or on PYTHONPATH, and for ``--wheels`` an environment in which it is installed, as what a
chat imports decides which packages are marked. "Cold" is a new process and no page of the model's files in the page cache,
"warm" a new process after the same files were read.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

LOAD = """
import sys, time, fairy2i_runtime
load = fairy2i_runtime.load
begin, work = time.perf_counter(), time.process_time()
model = load(sys.argv[1])
loaded, worked = time.perf_counter(), time.process_time()
model.generate("Once", max_new_tokens=1)
print(loaded - begin, worked - work, time.perf_counter() - loaded)
"""
IMPORTED = """
import os, sys
from fairy2i_runtime.commands.program import run
sys.stdout = open(os.devnull, "w")
run(["generate", sys.argv[1], "Once upon a time", "--max-new-tokens", "4"])
from importlib.metadata import packages_distributions
found = packages_distributions()
print(*{name for module in list(sys.modules) for name in found.get(module.split(".")[0], ())}, file=sys.__stdout__)
"""
STARTS = {
    "`import numpy`": ["-c", "import numpy"],
    "`import onnxruntime`": ["-c", "import onnxruntime"],
    "`import fairy2i_runtime`": ["-c", "import fairy2i_runtime"],
    "`import fairy2i_runtime; fairy2i_runtime.load`": ["-c", "import fairy2i_runtime; fairy2i_runtime.load"],
    "`fairy2i --version`": ["-m", "fairy2i_runtime", "--version"],
}
SMALL = 3_000_000  # bytes installed; packages below are one row
QUESTION = b"What is gravity?\n"


@dataclass(frozen=True)
class Usage:
    """Of a process that has ended: seconds by the clock and of the processors, most bytes of memory, what it printed.

    And instructions, where benchmarks/arm/count_plugin.c counts them under qemu; else 0.
    """

    seconds: float
    processor: float
    peak: int
    output: str
    instructions: int = 0


def main(
    wheels: Annotated[Path | None, typer.Option(help="A folder of wheels to add up.")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="A model folder to load and to chat with; repeatable.")] = None,
    start: Annotated[str, typer.Option(help="The Python whose start is measured, with options.")] = sys.executable,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 7,
) -> None:
    """Measure and print Markdown."""
    print(
        f"{processor()}, {os.cpu_count()} processors, Python {platform.python_version()}; medians of {repeat} (min to max)\n"
    )
    if wheels is not None:
        print(wheel_table(wheels, imported_packages(model[0]) if model else None))
    if wheels is None or model:
        print(start_table(shlex.split(start), repeat))
    if model:
        print(load_table(model, repeat))


def wheel_table(folder: Path, imported: set[str] | None) -> str:
    """Every wheel with its size and that of its content, largest first; bytecode, which pip adds, is not counted."""
    rows = []
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as content:
            rows.append(
                (normal(path.name.split("-")[0]), path.stat().st_size, sum(item.file_size for item in content.infolist()))
            )
    if not rows:
        raise SystemExit(f"{folder}: expected wheels, found none")
    rows.sort(key=lambda row: -row[2])
    lines = ["| package | download, MB | installed, MB | imported |", "|---|--:|--:|---|"]
    for name, size, content_size in rows:
        if content_size < SMALL:
            break
        mark = "" if imported is None else "yes" if name in imported else "no"
        lines.append(f"| {name} | {size / 1e6:.2f} | {content_size / 1e6:.2f} | {mark} |")
    small = [row for row in rows if row[2] < SMALL]
    groups = [(f"less than {SMALL / 1e6:.0f} MB each", small), ("all", rows)] + (
        [("all that is imported", [row for row in rows if row[0] in imported])] if imported else []
    )
    for title, some in groups:
        lines.append(
            f"| **{title}**: {len(some)} | {sum(r[1] for r in some) / 1e6:.1f} | {sum(r[2] for r in some) / 1e6:.1f} | |"
        )
    return "\n".join(lines) + "\n"


def imported_packages(model: Path) -> set[str]:
    """Distributions of which a generation imports something."""
    return {normal(name) for name in run([sys.executable, "-c", IMPORTED, str(model)]).output.split()}


def normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def start_table(python: list[str], repeat: int) -> str:
    """Seconds to start and end a process that does this, measured in turns; the first turn, which fills caches, is left out."""
    found: dict[str, list[Usage]] = {name: [] for name in ("nothing", *STARTS)}
    for turn in range(repeat + 1):
        for name, arguments in {"nothing": ["-c", ""], **STARTS}.items():
            usage = run([*python, *arguments])
            if turn:
                found[name].append(usage)
    counted = any(usage.instructions for usages in found.values() for usage in usages)
    lines = ["| Python that does | seconds | of a processor |", "|---|--:|--:|"]
    if counted:
        lines = [f"{line} {cell} |" for line, cell in zip(lines, ("instructions, millions", "--:"), strict=True)]
    for name, usages in found.items():
        row = [name, spread([usage.seconds for usage in usages]), spread([usage.processor for usage in usages])]
        if counted:
            row.append(spread([usage.instructions / 1e6 for usage in usages], 0))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def load_table(models: list[Path], repeat: int) -> str:
    """Load, first token after it, and the most memory that a chat takes."""
    lines = [
        "| model | on disk, MB | | load, s | of a processor | first token, s | chat: most memory, MB |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for folder in models:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        chat = [sys.executable, "-m", "fairy2i_runtime", "chat", str(folder), "--max-new-tokens", "64", "--seed", "1"]
        peak = spread([run(chat, QUESTION).peak / 1e6 for _ in range(repeat)], 0)
        for state in ("cold", "warm"):
            times = []
            for _ in range(repeat):
                for path in files:
                    set_cache(path, state == "warm")
                times.append([float(word) for word in run([sys.executable, "-c", LOAD, str(folder)]).output.split()])
            load, work, first = (spread(list(column)) for column in zip(*times, strict=True))
            lines.append(f"| {folder.name} | {size / 1e6:.1f} | {state} | {load} | {work} | {first} | {peak} |")
    return "\n".join(lines) + "\n"


def set_cache(path: Path, warm: bool) -> None:
    """Bring a file into the page cache, or out of it."""
    with path.open("rb") as file:
        if warm:
            while file.read(1 << 24):
                pass
        else:
            os.fsync(file.fileno())  # pages that are still to be written stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str], text: bytes = b"") -> Usage:
    """Run a program to its end."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(text)
        process.stdin.close()
        output, trouble = process.stdout.read(), process.stderr.read()  # both are short
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}\n{trouble.decode(errors='replace')}")
    seconds = time.perf_counter() - begin
    counted = re.search(rb"^instructions (\d+)$", trouble, re.M)
    return Usage(
        seconds,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
        output.decode(errors="replace"),
        int(counted[1]) if counted else 0,
    )


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def processor() -> str:
    """Its name, as lscpu gives it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    return name[1] if name else platform.machine()


if __name__ == "__main__":
    typer.run(main)
