"""How far quantized weights are from the latent ones: greedy against joint, 1 to 4 stages, three kinds of row multipliers.

    python benchmarks/quality/weight_error.py [CHECKPOINT ...] [--size N] [--every N] [--times] [--json FILE]

Without checkpoints: one matrix of Gaussian weights. For a checkpoint (a directory with config.json and safetensors) the figure
is the root mean square over its two-dimensional weights but embedding and lm_head, each with its relative error. ``fitted``
row multipliers are those of ``rms`` improved by least squares given the codes, and codes and scales again given them, twice.
``--times`` measures both quantizers on 4096 x 4096, one thread and two, median of 5.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from fairy2i_export.codes.layout import pack_coded
from fairy2i_export.codes.quantizer import find_scales, quantize
from fairy2i_export.codes.strategies import QUANTIZERS
from fairy2i_export.source.checkpoint import open_checkpoint

F32 = npt.NDArray[np.float32]
ROWS = ("none", "rms", "fitted")
STAGES = (1, 2, 3, 4)
TIMED = (4096, 4096)


def main(
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Checkpoint directories.")] = None,
    size: Annotated[int, typer.Option(help="Rows and columns of the Gaussian matrix.")] = 2048,
    every: Annotated[int, typer.Option(help="Take every so many matrices of a checkpoint only.")] = 1,
    times: Annotated[bool, typer.Option("--times", help="Measure speed as well.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    console = Console()
    gaussian = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32) * np.float32(0.02)
    results: dict[str, Any] = {f"Gaussian {size} x {size}": errors(iter([gaussian]))}
    for directory in checkpoints or []:
        results[directory.name] = errors(islice(weights_of(directory), 0, None, every))
    for name, table in results.items():
        console.print(as_table(name, table))
    if times:
        results["milliseconds"] = speeds()
        for row in results["milliseconds"]:
            console.print(row)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1))


def weights_of(directory: Path) -> Iterator[F32]:
    """Every matrix of a checkpoint that the method quantizes, lm_head left out."""
    checkpoint = open_checkpoint(directory)
    for name in sorted(checkpoint.owners):
        shape = checkpoint.info(name).shape
        if len(shape) == 2 and not any(part in name for part in ("embed", "lm_head")) and not any(n % 2 for n in shape):
            yield checkpoint.read(name).astype(np.float32)


def errors(matrices: Iterator[F32]) -> dict[str, float]:
    """Root mean square of the relative errors by "quantizer, row multiplier, stages"."""
    squares: dict[str, list[float]] = {}
    for weight in matrices:
        for quantizer in QUANTIZERS:
            for rows in ROWS:
                for stages in STAGES:
                    found = relative_error(weight, stages, quantizer, rows)
                    squares.setdefault(f"{quantizer}, {rows}, {stages}", []).append(found**2)
    return {key: float(np.sqrt(np.mean(values))) for key, values in squares.items()}


def relative_error(weight: F32, stages: int, quantizer: str, rows: str) -> float:
    """|A - Q(A)| / |A| in the Frobenius norm."""
    multiplier: Any = "none" if rows == "none" else "rms"
    q = quantize(weight, stages, quantizer=quantizer, row_multiplier=multiplier)
    for _ in range(2 if rows == "fitted" else 0):
        dense = q.dequantize("none")
        factor = (weight * dense).sum(axis=1) / np.maximum((dense * dense).sum(axis=1), 1e-30)
        refit = (q.row_multiplier * factor).astype(np.float32)
        q = quantize(weight, stages, quantizer=quantizer, row_multiplier=np.where(refit == 0, 1, refit).astype(np.float32))
    return float(np.linalg.norm(weight - q.dequantize("none")) / np.linalg.norm(weight))


def as_table(name: str, results: dict[str, float]) -> Table:
    """One row per quantizer and kind of row multiplier, one column per number of stages."""
    table = Table(title=f"{name}: relative RMS error of the weights", title_justify="left")
    for heading in ("quantizer", "row multiplier", *(f"W{stages}" for stages in STAGES)):
        table.add_column(heading)
    for quantizer in QUANTIZERS:
        for rows in ROWS:
            table.add_row(quantizer, rows, *(f"{results[f'{quantizer}, {rows}, {stages}']:.4f}" for stages in STAGES))
    return table


def speeds() -> list[dict[str, Any]]:
    """Milliseconds to quantize and pack one matrix."""
    weight = np.random.default_rng(0).standard_normal(TIMED).astype(np.float32) * np.float32(0.02)
    out = []
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            for stages in STAGES:
                row: dict[str, Any] = {"threads": threads, "stages": stages}
                for quantizer in QUANTIZERS:
                    seconds = []
                    for _ in range(5):
                        start = time.perf_counter()
                        pack_coded(find_scales(weight, stages, "bf16-reference", quantizer=quantizer, pool=pool), pool)
                        seconds.append(time.perf_counter() - start)
                    row[quantizer] = round(1000 * statistics.median(seconds), 1)
                out.append(row)
    return out


if __name__ == "__main__":
    typer.run(main)
