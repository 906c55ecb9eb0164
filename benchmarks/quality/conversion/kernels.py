"""How far the predictions of kernels that round lie from those of ``exact``: perplexity tells only what is left of ups and downs.

    python benchmarks/quality/conversion/kernels.py MODEL... --wikitext wikitext2_test.txt --other wizard_of_oz.txt \
        [--conversations FILE] [--kernels lut,dot] [--only wiki-2k,other,answers]

Mean Kullback-Leibler divergence in thousandths of a nat per token, on the texts of texts.py, over all tokens of a window.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.texts import CONVERSATIONS, TEXTS, texts_in
from marked import markdown_table

from fairy2i_export.output.contract.logits import compare
from fairy2i_runtime import load
from fairy2i_runtime.measure.perplexity import Windows

REFERENCE = "exact"


def divergences(
    folder: Path, kernels: list[str], texts: dict[str, Windows], threads: int | None
) -> dict[str, dict[str, float]]:
    """By kernel and text, in nats per token.

    Args:
        folder: an exported model.
        kernels: to be compared with :data:`REFERENCE`.
        texts: as texts.py cuts them.
        threads: None: the runtime's choice.
    """
    reference, *others = (load(folder, kernel=kernel, threads=threads) for kernel in (REFERENCE, *kernels))
    found: dict[str, dict[str, float]] = {kernel: {} for kernel in kernels}
    for name, windows in texts.items():
        sums = np.zeros(len(kernels))
        for window in windows.windows:
            right = reference.logits(window.ids)
            for index, model in enumerate(others):
                sums[index] += compare(model.logits(window.ids), right, np.array(window.ids)).mean_kl * len(window.ids)
        tokens = sum(len(window.ids) for window in windows.windows)
        for kernel, total in zip(kernels, sums, strict=True):
            found[kernel][name] = float(total) / tokens
    return found


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported folders.")],
    wikitext: Annotated[Path | None, typer.Option(help="WikiText-2 test text.")] = None,
    other: Annotated[Path | None, typer.Option(help="Text of another kind.")] = None,
    conversations: Annotated[Path | None, typer.Option(help="Conversations that the float model wrote.")] = CONVERSATIONS,
    only: Annotated[str, typer.Option(help="Texts to read.")] = "wiki-2k,other,answers",
    kernels: Annotated[str, typer.Option(help="Kernels to compare.")] = "lut,dot",
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
) -> None:
    """Measure and print."""
    texts = texts_in(models[0], wikitext, other, conversations)
    names = [name for name in TEXTS if name in texts and name in only.split(",")]
    rows = []
    for model in models:
        found = divergences(model, kernels.split(","), {name: texts[name] for name in names}, threads)
        rows += [
            [model.name, kernel, *(f"{1e3 * by_text[name]:.2f}" for name in names)] for kernel, by_text in found.items()
        ]
    print("\n".join(markdown_table(["model", "kernel", *names], rows, left=2)))


if __name__ == "__main__":
    typer.run(main)
