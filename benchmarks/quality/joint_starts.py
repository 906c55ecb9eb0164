"""Search starting scales of the joint quantizer (STARTS in fairy2i_export/codes/strategies/joint.py) and of conversions.

    python benchmarks/quality/joint_starts.py [--kind gauss|laplace] [--stages T] [--seconds S] [--largest L]

Prints the best local optima from random starts, for entries whose parts have the standard deviation 1: relative RMS error,
then scales (re, im).
Conversions of 4 stages start with what --largest 1.25 finds (fairy2i_export/compile/calibrate/matrix/fit.py).
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer

from fairy2i_export.codes.native import Points
from fairy2i_export.codes.strategies.joint import fit_points


def main(
    kind: Annotated[str, typer.Option(help="gauss or laplace.")] = "gauss",
    stages: Annotated[int, typer.Option(help="Residual stages.")] = 3,
    seconds: Annotated[float, typer.Option(help="How long to search.")] = 20.0,
    entries: Annotated[int, typer.Option(help="Complex entries to fit.")] = 1 << 14,
    largest: Annotated[float, typer.Option(help="Only optima without a scale above this.")] = np.inf,
) -> None:
    """Search and print."""
    rng = np.random.default_rng(1)
    draw = rng.standard_normal((2, entries)) if kind == "gauss" else rng.laplace(size=(2, entries)) / np.sqrt(2)
    re, im = draw.astype(np.float32)
    norm = float(np.square(draw).sum())
    until = time.monotonic() + seconds
    tried = []
    while time.monotonic() < until:
        start = rng.uniform(0.2, 2.0, (stages, 2)).astype(np.float32)
        tried.append(fit_points(lambda scales: Points(scales).sums(re, im), start, 25))
    tried.sort(key=lambda found: found[1])
    print(f"{len(tried)} random starts")
    tried = [found for found in tried if found[0].max() <= largest]
    best = [fit_points(lambda scales: Points(scales).sums(re, im), scales, 400) for scales, _ in tried[:12]]
    for scales, error in sorted((found for found in best if found[0].max() <= largest), key=lambda found: found[1])[:6]:
        order = np.argsort(-scales.sum(axis=1))
        print(f"{np.sqrt(error / norm):.5f}", np.round(scales[order].astype(float), 2).tolist())


if __name__ == "__main__":
    typer.run(main)
