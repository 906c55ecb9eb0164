"""What it brings that rows of likely tokens weigh more when the codes of lm_head are chosen: the float model with such a head.

    python benchmarks/quality/conversion/head_rows.py CHECKPOINT --calibrate TEXT [--calibrate TEXT] \
        --text wikitext2_test.txt --text wizard_of_oz.txt [--into docs/quality.md]

Everything but lm_head is float, and its row multipliers are not tuned. Of each text the first tokens are read, in windows of 1,024:
perplexity, and how far predictions are from the float model's (nats per token).
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from marked import markdown_table, print_or_put

from fairy2i_export.compile.calibrate.head import calibrate_rows, sensitivity
from fairy2i_export.compile.calibrate.matrix.metric import Statistics
from fairy2i_export.compile.calibrate.run import SWEEPS, skeleton_of
from fairy2i_export.compile.calibrate.skeleton import Skeleton
from fairy2i_export.compile.calibrate.streams import advance, halves
from fairy2i_export.compile.prepare import Prepared, prepare
from fairy2i_export.request.option import build
from fairy2i_export.request.request import Request
from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.text.tokenizer import Tokenizer

WINDOW = 1024


def normed(skeleton: Skeleton, norm: str, ids: Any) -> Any:
    """What the float model's lm_head reads, torch float32 [windows, length, hidden], of int64 [windows, length]."""
    with torch.no_grad():
        states, calls = skeleton.begin(ids)
        for index, call in enumerate(calls):
            advance(skeleton.layer(index), states, call)
        return skeleton.module(norm)(states)


def windows_of(checkpoint: Path, text: str, tokens: int) -> Any:
    """The first tokens of a text, int64 [windows, WINDOW]."""
    ids = Tokenizer.load(checkpoint).encode(text, add_special_tokens=False)[:tokens]
    if len(ids) < tokens or tokens % WINDOW:
        raise typer.BadParameter(f"expected texts of {tokens} tokens, a multiple of {WINDOW}, found one of {len(ids)}")
    return np.array(ids, np.int64).reshape(-1, WINDOW)


def measured(states: Any, ids: Any, head: Any, exact: Any) -> tuple[float, float]:
    """Perplexity of a head, and its divergence from the float one."""
    loss = divergence = 0.0
    for window, tokens in zip(states[:, :-1], torch.from_numpy(ids)[:, 1:], strict=True):
        found, wanted = ((window @ weight.T).log_softmax(-1) for weight in (head, exact))
        loss -= float(found.gather(1, tokens[:, None]).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
    count = states[:, 1:, 0].numel()
    return math.exp(loss / count), divergence / count


def heads(prepared: Prepared, states: Any, exact: Any, stages: list[int]) -> Iterator[tuple[str, Any]]:
    """(label, matrix [vocabulary, hidden]): rows alike and weighted, for every number of stages."""
    linear = prepared.plan.linears[prepared.decoder.names.lm_head]
    statistics = Statistics(linear.in_features)
    for half, part in halves(states):
        statistics.add(states[part], half)
    matters = sensitivity(
        states.flatten(0, 1)[:: -(-states[..., 0].numel() // 4096)], exact, prepared.decoder.logits_softcap
    )
    for count in stages:
        for label, rows in (("alike", torch.ones_like(matters)), ("weighted", matters)):
            made = calibrate_rows(exact, statistics, replace(linear, stages=count), rows, SWEEPS["normal"])
            yield f"{count} stages, rows {label}", torch.from_numpy(made.linear.dequantize("none"))


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A float model without a cap of its logits.")],
    calibrate: Annotated[list[Path], typer.Option(help="Text to choose codes on; may be repeated.")],
    text: Annotated[list[Path], typer.Option(help="Text to measure with; may be repeated.")],
    calibrate_tokens: Annotated[int, typer.Option(help="Of the text to choose on.")] = 32_768,
    tokens: Annotated[int, typer.Option(help="Of every text to measure with.")] = 2_048,
    stages: Annotated[str, typer.Option(help="Numbers of stages.")] = "2,3",
    into: Annotated[Path | None, typer.Option(help="Put the table into this document instead of printing it.")] = None,
) -> None:
    """Measure and print."""
    options = {"calibrate": calibrate, "calibrate_tokens": calibrate_tokens, "lm_head": "fairy2i"}
    with tempfile.TemporaryDirectory() as nothing:
        prepared = prepare(checkpoint, Path(nothing) / "out", build(Request, "checkpoint", options, str(checkpoint)))
    assert prepared.text is not None
    skeleton, names = skeleton_of(prepared), prepared.decoder.names
    linear = prepared.plan.linears[names.lm_head]
    exact = torch.from_numpy(skeleton.tensor(linear.name, tensor=linear.weight))
    ids = [windows_of(checkpoint, read_text(path), tokens) for path in text]
    states = [normed(skeleton, names.final_norm, each) for each in ids]
    rows = []
    chosen_on = normed(skeleton, names.final_norm, prepared.text.ids)
    for label, head in [("float", exact), *heads(prepared, chosen_on, exact, [int(count) for count in stages.split(",")])]:
        found = [measured(state, each, head, exact) for state, each in zip(states, ids, strict=True)]
        print(label, *(f"{perplexity:.3f} {nats:.4f}" for perplexity, nats in found), flush=True)
        rows.append([label, *(cell for perplexity, nats in found for cell in (f"{perplexity:.2f}", f"{nats:.3f}"))])
    headings = ["lm_head, all else float", *(word for path in text for word in (path.stem, "nats from float"))]
    print_or_put(into, {"head-rows": markdown_table(headings, rows)})


if __name__ == "__main__":
    typer.run(main)
