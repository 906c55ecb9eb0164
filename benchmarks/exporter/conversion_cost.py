"""What a conversion without training takes: time, processor time and memory for models of the shapes people have.

    python benchmarks/exporter/conversion_cost.py WORK [NAME ...] [--stages N] [--tokens N] [--plan] [--json FILE]

Weights and text are random, so nothing but cost and sizes is to be learnt (quality: docs/quality.md). Each model is written to
WORK, converted by the command line in a process of its own, and removed. Shapes are those of the models' published
config.json; biases are left out. Memory to run is what ``fairy2i info`` estimates at the context given.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporter.conversions import convert
from exporter.synthetic_checkpoint import SHAPES, llama_config, write_checkpoint
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.request.request import CALIBRATION_TOKENS

MODELS = ("SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.2-1B", "SmolLM2-1.7B", "Llama-2-7B", "Llama-2-7B, 1 layer")
CONTEXT = 4096


def main(
    work: Annotated[Path, typer.Argument(help="Directory on a disk with room for the largest model.")],
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(MODELS)}; all by default.")] = None,
    stages: Annotated[int, typer.Option(help="Bits per weight.")] = 4,
    tokens: Annotated[int, typer.Option(help="Of the text that decides about the codes.")] = CALIBRATION_TOKENS["normal"],
    plan: Annotated[
        bool, typer.Option(help="Sizes, memory and time as --dry-run estimates them; nothing is converted.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    unknown = [name for name in names or [] if name not in MODELS]
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(MODELS)}, got {', '.join(unknown)}")
    rows = [measure(name, work, stages, tokens, plan) for name in names or MODELS]
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1))
    Console().print(table_of(rows))


def measure(name: str, work: Path, stages: int, tokens: int, plan: bool) -> dict[str, Any]:
    """Write, convert (or plan to), weigh and remove one model."""
    source, target, text = (work / f"cost-{part}" for part in ("source", "target", "text"))
    config = llama_config(**SHAPES[name])
    try:
        write_checkpoint(source, config)
        words = np.random.default_rng(0).integers(3, int(str(config["vocab_size"])), tokens + 1024)
        text.write_text(" ".join(f"w{word}" for word in words))
        if plan:
            return planned(name, source, text, stages, tokens)
        arguments = [source, "-o", target, "--calibrate", text, "--calibrate-tokens", tokens, "--stages", stages]
        cost = convert([*arguments, "--context-length", CONTEXT])
        info = [sys.executable, "-m", "fairy2i_runtime", "info", str(target), "--json"]
        memory = json.loads(subprocess.run(info, stdout=subprocess.PIPE, check=True).stdout)["model"]["memory"]
        return {
            "name": name,
            "stages": stages,
            "tokens": tokens,
            "source_bytes": size_of(source, "*.safetensors"),
            "folder_bytes": size_of(target, "*"),
            **cost,
            "run_bytes": memory["total"],
        }
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        text.unlink(missing_ok=True)


def planned(name: str, source: Path, text: Path, stages: int, tokens: int) -> dict[str, Any]:
    """What a dry run says."""
    found = dry_run(source, None, calibrate=[text], calibrate_tokens=tokens, stages=stages, context_length=CONTEXT)
    return {
        "name": name,
        "stages": stages,
        "tokens": tokens,
        "source_bytes": size_of(source, "*.safetensors"),
        "folder_bytes": found.estimate.output_bytes,
        "seconds": found.calibration_seconds,
        "processor_seconds": None,
        "peak_bytes": found.estimate.peak_ram_bytes,
        "run_bytes": found.device.as_dict()["total"],
    }


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def table_of(rows: list[dict[str, Any]]) -> Table:
    """As docs/your-model.md has it."""
    table = Table(title=f"{rows[0]['stages']} stages, {rows[0]['tokens']:,} tokens", title_justify="left")
    table.add_column("shape of")
    for heading in ("source", "folder", "time", "processor", "memory to convert", f"to run, {CONTEXT} tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = [f"{row[key] / 1e9:.2f} GB" for key in ("source_bytes", "folder_bytes", "peak_bytes", "run_bytes")]
        times = ["" if row[key] is None else f"{row[key] / 60:.1f} min" for key in ("seconds", "processor_seconds")]
        table.add_row(row["name"], *sizes[:2], *times, *sizes[2:])
    return table


if __name__ == "__main__":
    typer.run(main)
