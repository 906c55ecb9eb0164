"""What a prompt gains from computing the logits of its last token alone: medians of interleaved rounds, and their ratio.

The same session reads the same prompt by turns with num_logits_to_keep = 1 and as hosts do that do not know the input, which get
the logits of all tokens. Other programs on the machine disturb both alike, so the ratio of a round means more than its times.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import fairy2i_runtime
from fairy2i_runtime.model import Model


def seconds(model: Model, prompt: list[int], *, select: bool) -> float:
    """Time from an empty cache to the logits of the token after the prompt."""
    cache = model.decoder.new_cache(len(prompt))
    model.decoder.selects = select
    start = time.perf_counter()
    model.decoder.next_logits(prompt, cache)
    return time.perf_counter() - start


def main(
    folder: Annotated[Path, typer.Argument(help="A model folder.")],
    tokens: Annotated[list[int] | None, typer.Option(help="Length of a prompt; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 9,
    threads: Annotated[int | None, typer.Option()] = None,
    kernel: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Print a row for every length."""
    model = fairy2i_runtime.load(folder, threads=threads, kernel=kernel)
    if not model.decoder.selects:
        raise SystemExit(f"{folder}: has no input num_logits_to_keep; export it with this version")
    print(f"{platform.processor() or platform.machine()}, {rounds} interleaved rounds, kernel {kernel or 'of the folder'}")
    print("| tokens | all logits | the last one | ratio of a round, median (range) |\n|---|---|---|---|")
    for length in tokens or [128, 512]:
        prompt = np.random.default_rng(0).integers(0, model.decoder.vocab, length).tolist()
        both = [(seconds(model, prompt, select=False), seconds(model, prompt, select=True)) for _ in range(rounds + 1)][1:]
        every, last = (statistics.median(times) for times in zip(*both, strict=True))
        ratios = sorted(b / a for a, b in both)
        print(
            f"| {length} | {every:.3f} s | {last:.3f} s | "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |"
        )


if __name__ == "__main__":
    typer.run(main)
