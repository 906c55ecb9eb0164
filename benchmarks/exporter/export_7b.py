"""Export a checkpoint of the size of LLaMA-2-7B: time against its two lower parts, and peak memory.

    python benchmarks/exporter/export_7b.py WORK [--layers N] [--keep] [--json FILE]

WORK needs 16 GB of free disk (the checkpoint and the result, both removed at the end; --keep leaves the checkpoint for
another run). Measured in this order, each with the
checkpoint not in the page cache: reading the files once (`cat`), quantizing and packing as many weights in memory, the
export by the command line. The export must also write 1.9 GB and hash what it reads.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporter.synthetic_checkpoint import gaussian_table, linear_shapes, llama_config, random_latents, write_checkpoint
from fairy2i_export.codes.layout import pack_coded
from fairy2i_export.codes.quantizer import find_scales

EXPORT = """
import json, sys
from fairy2i_export import export
report = export(sys.argv[1], sys.argv[2], trained=True, jobs=int(sys.argv[3]))
print(json.dumps({"peak_rss": report.peak_ram_bytes, "output_bytes": report.output_bytes, "own_seconds": report.seconds}))
"""


def main(
    work: Annotated[Path, typer.Argument(help="Directory on a disk with 16 GB free; not a RAM disk.")],
    layers: Annotated[int, typer.Option(help="Decoder layers; 32 is LLaMA-2-7B.")] = 32,
    jobs: Annotated[int, typer.Option(help="Threads that quantize.")] = 2,
    keep: Annotated[bool, typer.Option(help="Leave the checkpoint there, and use one that is there.")] = False,
    warm: Annotated[bool, typer.Option(help="Measure with the files in the page cache instead.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    config = llama_config(layers)
    parameters = sum(rows * cols for rows, cols in linear_shapes(config).values())
    needed = 2.6 * parameters
    free = shutil.disk_usage(work).free
    if free < needed and not keep:
        raise SystemExit(f"{work}: needs {needed / 1e9:.0f} GB, has {free / 1e9:.0f}; use fewer --layers")
    source, target = work / "synthetic", work / "synthetic-fairy2i"
    try:
        figures: dict[str, Any] = {"layers": layers, "jobs": jobs, "linear_parameters": parameters}
        if not (keep and source.is_dir()):
            write_checkpoint(source, config)
            os.sync()
        figures["source_bytes"] = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        figures["quantize_pack_seconds"] = time_quantizer(config, jobs)
        prepare_cache(source, warm)
        figures["cat_seconds"] = timed(["sh", "-c", 'cat "$1"/*.safetensors > /dev/null', "sh", str(source)])[0]
        prepare_cache(source, warm)
        figures["export_seconds"], output = timed([sys.executable, "-c", EXPORT, str(source), str(target), str(jobs)])
        figures |= json.loads(output)
        parts = figures["cat_seconds"] + figures["quantize_pack_seconds"]
        figures["ratio"] = figures["export_seconds"] / parts
        print(json.dumps(figures, indent=1))
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=1))
    finally:
        for path in (target,) if keep else (source, target):
            shutil.rmtree(path, ignore_errors=True)


def prepare_cache(source: Path, warm: bool) -> None:
    """Bring the files into the page cache, or out of it."""
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:
            if warm:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds and output of a command."""
    start = time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return time.perf_counter() - start, output


def time_quantizer(config: dict[str, object], jobs: int) -> float:
    """Seconds to quantize and pack every linear layer, from memory to memory."""
    rng, table = np.random.default_rng(1), gaussian_table()
    seconds = 0.0
    with ThreadPoolExecutor(jobs) as pool:
        for shape, count in Counter(linear_shapes(config).values()).items():
            weight = random_latents(shape, rng, table).view(ml_dtypes.bfloat16)
            pack_coded(find_scales(weight, 2, "bf16-reference", pool=pool), pool)  # warm up
            start = time.perf_counter()
            for _ in range(count):
                pack_coded(find_scales(weight, 2, "bf16-reference", pool=pool), pool)
            seconds += time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    typer.run(main)
