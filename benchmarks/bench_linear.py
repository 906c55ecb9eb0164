"""Linear layers inside ONNX Runtime: fairy2i kernels, MatMulNBits and MatMul against the memory floor, in one run.

Method and results: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fairy2i_runtime import core
from fairy2i_runtime.commands.console import new_app, run_app
from fairy2i_runtime.errors import Fairy2iRuntimeError
from linear import engines, shapes
from linear.measure import Plan, Timing, measure, records
from linear.sweep import BenchmarkError, last_level_cache
from report import print_tables

MEGABYTE = 1 << 20
ROWS = [1, 8, 128, 512]
THREADS = [1, 2]
LONGEST = 20.0
QUICK_ENGINES = ["lut", "dot", "ort-q2", "floor"]
QUICK_MEGABYTES = 64
QUICK_SECONDS = 36.0  # for setting up and timing; one step may overrun its share
SHARED_MEMORY = Path("/dev/shm")

app = new_app(__doc__ or "")


def default_engines() -> list[str]:
    """Every family with the best ISA, look-ups also with AVX2 where that is not the best, and what to compare with."""
    runnable = [k for k in core.kernels() if k.available]
    lut_avx2 = ["lut:avx2" for k in runnable if (k.family, k.isa, k.is_default) == ("lut", "avx2", False)]
    return ["lut", *lut_avx2, "dot", "exact", *engines.BASELINES, *engines.FLOORS]


def _default_folder() -> str | None:
    """Shared memory if there is room: weights are then never written to a disk while something is timed."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 4 << 30
    return str(SHARED_MEMORY) if roomy else None


@app.command()
def run(
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="lut, dot, exact, auto (with an ISA: lut:avx2), ort-q2, ort-q4, ort-f32, "
            "ort-ternary, ort-ternary-exact (--backend matmulnbits), floor, floor-adds, floor-huge; repeatable."
        ),
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="7B, 135M, or NxK; repeatable; default both models.")] = None,
    rows: Annotated[
        list[int] | None, typer.Option("--rows", "-M", help="Rows of activations; repeatable; default 1 8 128 512.", min=1)
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Of a session; repeatable; default 1 2.", min=1)] = None,
    isa: Annotated[str, typer.Option(help="ISA of the fairy2i kernels that name none.")] = "",
    repetitions: Annotated[int, typer.Option(help="Timed runs of each engine.", min=1)] = 7,
    megabytes: Annotated[float, typer.Option(help="Weights of the copies of a layer, at least (M <= 16).", min=0.001)] = 320,
    flush_megabytes: Annotated[
        float, typer.Option(help="Memory read before every timed run to empty the caches; 0: 1.5 x last level cache.", min=0)
    ] = 0,
    longest: Annotated[float, typer.Option(help="Leave out an engine that takes more seconds for one run.")] = LONGEST,
    folder: Annotated[
        Path | None, typer.Option(help="For the weights; default /dev/shm if it has 4 GB, else a temporary folder.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records here.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="7B shapes, M = 1 and 128, 2 threads, fewer engines: 45 seconds.")
    ] = False,
) -> None:
    """Time linear layers. Times are medians; run it on an otherwise idle machine."""
    if quick:
        engine, rows = engine or QUICK_ENGINES, rows or [1, 128]
        shape, threads = shape or ["7B"], threads or [min(2, os.cpu_count() or 1)]
        megabytes = min(megabytes, QUICK_MEGABYTES)
    try:
        chosen = list(dict.fromkeys(engines.parse(name, isa or None) for name in engine or default_engines()))
        layers = list(dict.fromkeys(layer for name in shape or shapes.MODELS for layer in shapes.parse(name)))
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
    if json_file is not None:  # find out now, not after all the work
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.touch()
        except OSError as error:
            raise BenchmarkError(f"--json: cannot write {json_file}: {error.strerror}") from error
    if folder is not None and not folder.is_dir():
        raise BenchmarkError(f"--folder: {folder} is not a folder")
    flush = int(flush_megabytes * MEGABYTE) or last_level_cache() * 3 // 2
    console = Console(stderr=True)
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="fairy2i_bench_", dir=folder or _default_folder()) as weights:
        plan = Plan(
            engines=chosen,
            shapes=layers,
            rows=sorted(set(rows or ROWS)),
            threads=sorted(set(threads or THREADS)),
            bytes=int(megabytes * MEGABYTE),
            flush_bytes=flush // 8 * 8,
            repetitions=repetitions,
            longest=longest,
            seconds=QUICK_SECONDS if quick else math.inf,
            folder=Path(weights),
        )
        for timing in measure(plan, lambda text: console.print(text, style="dim", highlight=False)):
            timings.append(timing)
    found = records(timings)
    print_tables(found, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    return run_app(app, "bench_linear", arguments or sys.argv[1:] or ["--quick"], (BenchmarkError, Fairy2iRuntimeError))


if __name__ == "__main__":
    sys.exit(main())
