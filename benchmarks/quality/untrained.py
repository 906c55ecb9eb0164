"""Perplexity of a plain pretrained model after quantization, without any training: greedy against joint.

    python benchmarks/quality/untrained.py CHECKPOINT --text FILE [--tokens N] [--stages 2,3,4] [--row-multipliers none,rms]

Exports every combination to a temporary folder (lm_head stays float) and measures it with ``fairy2i ppl`` in exact mode,
protocol sliding, default window. No torch.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fairy2i_export import export
from fairy2i_export.codes.strategies import QUANTIZERS
from fairy2i_runtime import load
from fairy2i_runtime.commands.measure import cut_text, read_text, run_protocols
from fairy2i_runtime.measure.perplexity import model_scorer


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    text: Annotated[Path, typer.Option(help="Text to measure with.")],
    tokens: Annotated[int, typer.Option(help="Tokens of the text.")] = 2048,
    stages: Annotated[str, typer.Option(help="Numbers of stages.")] = "2,3,4",
    row_multipliers: Annotated[str, typer.Option(help="none, rms.")] = "none,rms",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    content = read_text(text)
    results: list[dict[str, Any]] = []
    table = Table(title=f"{checkpoint.name}: perplexity without training", title_justify="left")
    for heading in ("quantizer", "row multiplier", "stages", "weight error", "perplexity"):
        table.add_column(heading)
    for quantizer in QUANTIZERS:
        for rows in row_multipliers.split(","):
            for count in map(int, stages.split(",")):
                with tempfile.TemporaryDirectory() as folder:
                    options: dict[str, Any] = {"stages": count, "quantizer": quantizer, "row_multiplier": rows}
                    report = export(checkpoint, Path(folder) / "model", lm_head="float", trained=True, **options)
                    model = load(report.path, kernel="exact")
                    cuts = cut_text(model, content, "sliding", None, None, "\n", tokens)
                    (found,) = run_protocols(cuts, model_scorer(model), "model")
                results.append({**options, "error": report.mean_error, "perplexity": found.perplexity})
                table.add_row(quantizer, rows, str(count), f"{report.mean_error:.3f}", f"{found.perplexity:,.1f}")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
