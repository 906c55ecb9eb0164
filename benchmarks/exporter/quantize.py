"""Quantize and pack one matrix, against the published formulas written plainly in torch, in the same run.

    python benchmarks/exporter/quantize.py [--rows N] [--cols N] [--stages T] [--threads T] [--json FILE]

Both get the same bfloat16 matrix and the same number of threads and take turns; the figure is the median of the rounds. torch
computes the codes, scales and dequantized parts of U and W (angle, four masks, means, residual); it packs nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import torch
import typer

from fairy2i_export.codes.layout import pack_coded
from fairy2i_export.codes.quantizer import find_scales


def main(
    rows: Annotated[int, typer.Option(help="Output features.")] = 4096,
    cols: Annotated[int, typer.Option(help="Input features.")] = 4096,
    stages: Annotated[int, typer.Option(help="Residual stages.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 2,
    rounds: Annotated[int, typer.Option(help="Measurements of each.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    values = np.random.default_rng(0).standard_normal((rows, cols), np.float32) * np.float32(0.02)
    weight = values.astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(values).to(torch.bfloat16)
    with ThreadPoolExecutor(threads) as pool:
        contenders: dict[str, Callable[[], Any]] = {
            "fairy2i-export": lambda: pack_coded(find_scales(weight, stages, "bf16-reference", pool=pool), pool),
            "torch": lambda: published_formulas(tensor, stages),
        }
        seconds = {name: [run_once(function)] for name, function in contenders.items()}  # the first of each warms up
        for _ in range(rounds):
            for name, function in contenders.items():
                seconds[name].append(run_once(function))
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    figures = {
        "shape": [rows, cols],
        "stages": stages,
        "threads": threads,
        "milliseconds": {name: round(1000 * value, 2) for name, value in median.items()},
        "ratio": median["torch"] / median["fairy2i-export"],
    }
    print(json.dumps(figures, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1))


def run_once(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def published_formulas(a: torch.Tensor, stages: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(U_re, U_im), (W_re, W_im) after quantization, as arXiv 2512.02901 writes it, in the dtype of ``a``."""
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    parts = [(0.5 * (a11 + a22), 0.5 * (a21 - a12)), (0.5 * (a11 - a22), 0.5 * (a12 + a21))]
    return [_residual_quantization(re, im, stages) for re, im in parts]


def _residual_quantization(re: torch.Tensor, im: torch.Tensor, stages: int) -> tuple[torch.Tensor, torch.Tensor]:
    total_re, total_im = torch.zeros_like(re), torch.zeros_like(im)
    for _ in range(stages):
        q_re, q_im = _phase_quantization(re, im)
        re, im = re - q_re, im - q_im
        total_re, total_im = total_re + q_re, total_im + q_im
    return total_re, total_im


def _phase_quantization(re: torch.Tensor, im: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    phase = torch.angle(torch.complex(re.float(), im.float()))
    quarter = torch.pi / 4
    plus = (phase >= -quarter) & (phase < quarter)
    plus_i = (phase >= quarter) & (phase < 3 * quarter)
    minus = (phase >= 3 * quarter) | (phase < -3 * quarter)
    minus_i = (phase >= -3 * quarter) & (phase < -quarter)
    scale_re = re[plus | minus].abs().mean().clamp(min=1e-6)
    scale_im = im[plus_i | minus_i].abs().mean().clamp(min=1e-6)
    q_re = (plus.to(re.dtype) - minus.to(re.dtype)) * scale_re
    q_im = (plus_i.to(im.dtype) - minus_i.to(im.dtype)) * scale_im
    return q_re, q_im


if __name__ == "__main__":
    typer.run(main)
