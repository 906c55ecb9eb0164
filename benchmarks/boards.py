"""Which model fits which Raspberry Pi, and how many tokens per second to expect: estimates, nothing is run.

    python benchmarks/boards.py [--into docs/raspberry-pi.md]

Prints two tables, or puts them into a page between its marks. The memory is what ``fairy2i-export SOURCE --dry-run`` says of a
checkpoint of that shape, with ``--embedding int8 --lm-head int4 --kv-cache int8``. The speed is the smaller of what memory and what
arithmetic allow, from the figures of :data:`BOARDS`, which are assumptions, and the cycles per weight of docs/arm.md.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.synthetic_checkpoint import SHAPES, linear_shapes, llama_config, write_checkpoint
from fairy2i_export.compile.dry_run import DryRun, dry_run
from fairy2i_runtime.measure.memory import human_bytes

OPTIONS: dict[str, Any] = {"embedding": "int8", "lm_head": "int4", "kv_cache": "int8"}
CONTEXTS = (512, 1024, 2048, 4096, 8192)
STAGES = (2, 3)
SYSTEM_BYTES = 200_000_000  # assumption: kernel, firmware and services of Raspberry Pi OS Lite, no desktop
MEMORY_MB = (512, 1024, 2048, 4096, 8192, 16384)  # of the boards
SPEED_CONTEXT = 1024  # tokens in the cache, all of which are read for a token


@dataclass(frozen=True)
class Board:
    """What speed depends on.

    Attributes:
        name: of the board.
        clock: of its four cores, in Hz.
        memory_mb: of the largest one.
        bandwidth: that reading is assumed to reach, in bytes per second; docs/raspberry-pi.md says where from.
        cycles: per weight at 2 bits for one token on one core, from docs/arm.md.
    """

    name: str
    clock: float
    memory_mb: int
    bandwidth: float
    cycles: float


CORES = 4
BOARDS = (
    Board("Zero 2 W", 1.0e9, 512, 1.5e9, 0.477),
    Board("Pi 3", 1.2e9, 1024, 2e9, 0.477),
    Board("Pi 4", 1.8e9, 8192, 4e9, 0.156),
    Board("Pi 5", 2.4e9, 16384, 10e9, 0.094),
)
MODELS = ("SmolLM2-135M", "SmolLM2-360M", "Llama-3.2-1B", "SmolLM2-1.7B", "Llama-3.2-3B", "Llama-2-7B")
LONGEST = {"Llama-2-7B": 4096}  # context the model was trained for, where it is below the longest of CONTEXTS


def main(
    into: Annotated[Path | None, typer.Option(help="A page whose tables are to be replaced.")] = None,
) -> None:
    """Print the tables, or write them into a page."""
    memory, speed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            config = llama_config(**SHAPES[name])
            config["max_position_embeddings"] = max(CONTEXTS)
            source = Path(folder) / name
            write_checkpoint(source, config, hollow=True)
            for stages in STAGES:
                some, more = (
                    dry_run(source, Path(folder) / "out", stages=stages, context_length=context, **OPTIONS)
                    for context in (SPEED_CONTEXT, 2 * SPEED_CONTEXT)
                )
                memory.append(memory_row(name, stages, some, more))
                speed.append(speed_row(name, stages, config, some))
    tables = {
        "memory": table(
            ["model", "stages", "on disk", "memory, 1,024 tokens", *(size_name(size) for size in MEMORY_MB)], memory
        ),
        "speed": table(["model", "stages", "read per token", *(board.name for board in BOARDS)], speed),
    }
    if into is None:
        print("\n".join(tables.values()))
        return
    text = into.read_text(encoding="utf-8")
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{into}: expected the marks {begin.strip()} and {end}, once each")
        text = text[: text.index(begin) + len(begin)] + lines + text[text.index(end) :]
    into.write_text(text, encoding="utf-8")


def memory_row(name: str, stages: int, some: DryRun, more: DryRun) -> list[str]:
    """The longest context that every size of memory has room for.

    Cache, rotary tables and attention scores grow with the context, all else stays: two estimates give every other.
    """
    per_token = (more.device.total - some.device.total) / (more.device.context - some.device.context)
    contexts = [context for context in CONTEXTS if context <= LONGEST.get(name, context)]
    cells = []
    for size in MEMORY_MB:
        room = size * 2**20 - SYSTEM_BYTES - some.device.total
        fitting = [context for context in contexts if (context - some.device.context) * per_token <= room]
        cells.append(f"{max(fitting):,}" if fitting else "–")
    return [name, str(stages), human_bytes(some.estimate.output_bytes), human_bytes(some.device.total), *cells]


def speed_row(name: str, stages: int, config: dict[str, object], run: DryRun) -> list[str]:
    """Tokens per second by bandwidth or arithmetic, whichever allows less."""
    read = bytes_per_token(run)
    weights = sum(rows * cols for key, (rows, cols) in linear_shapes(config).items() if key != "lm_head.weight")
    cells = []
    for board in BOARDS:
        if run.device.total > board.memory_mb * 2**20 - SYSTEM_BYTES:
            cells.append("–")
            continue
        by_memory = board.bandwidth / read
        by_arithmetic = CORES * board.clock / (weights * board.cycles * stages / 2)
        cells.append(rounded(min(by_memory, by_arithmetic)))
    return [name, str(stages), human_bytes(read), *cells]


def bytes_per_token(run: DryRun) -> int:
    """All weights but the embedding, of which a token reads one row, and the cache of a full context."""
    embedding = sum(group.total_bytes for group in run.groups if re.search(r"embed", group.name))
    return run.device.weights - embedding + run.device.cache


def rounded(value: float) -> str:
    """Two digits at most: more would promise too much."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def size_name(size: int) -> str:
    return f"{size} MB" if size < 1024 else f"{size // 1024} GB"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    typer.run(main)
