"""Tables and curves of what compare.py measured: ``python benchmarks/quality/tables.py DIRECTORY --into docs/quality.md``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from marked import print_or_put
from runs import EXPERIMENTS, Run

Result = dict[str, Any]


def results_of(directory: Path, run: Run) -> list[Result]:
    """What was measured of a run, by seed."""
    files = sorted(directory.glob(f"{run.name}-[0-9]*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return [result for result in found if result["run"]["name"] == run.name]


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def perplexity_text(values: list[float]) -> str:
    return f"{statistics.mean(values):,.0f}" if min(values) > 1000 else spread(values, 2)


def experiment_table(directory: Path, name: str) -> list[str]:
    """Markdown lines of one experiment."""
    lines = [
        "| | bits per weight | seeds | nats per token | perplexity | over float | before training | onnxruntime: torch |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = results_of(directory, EXPERIMENTS[name].runs[0])
    floor = base[0]["loss"] if base else None
    for run in EXPERIMENTS[name].runs:
        found = results_of(directory, run)
        if not found:
            continue
        losses = [result["loss"] for result in found]
        before = found[0].get("untrained")
        ratios = [r["kernels"]["exact"]["perplexity"] / r["torch"]["perplexity"] - 1 for r in found if "torch" in r]
        worst = max(ratios, key=abs) if ratios else None
        cells = [
            run.label, run.bits, str(len(found)), spread(losses, 3), perplexity_text([r["perplexity"] for r in found]),
            "" if floor is None else f"+{statistics.mean(losses) - floor:.3f}", "" if before is None else f"{before['loss']:.2f}",
            "" if worst is None else f"{worst:+.2%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def kernel_table(directory: Path, name: str) -> list[str]:
    """What the kernel families lose against exact mode, over all exported runs of an experiment."""
    lines = ["| | exact | lut | dot |", "|---|--:|--:|--:|"]
    for run in EXPERIMENTS[name].runs:
        found = [result["kernels"] for result in results_of(directory, run) if "kernels" in result]
        if found:
            exact = statistics.mean(kernels["exact"]["perplexity"] for kernels in found)
            changes = [
                statistics.mean(kernels[kernel]["perplexity"] / kernels["exact"]["perplexity"] - 1 for kernels in found)
                for kernel in ("lut", "dot")
            ]
            lines.append(f"| {run.label} | {exact:.3f} | {' | '.join(f'{change:+.2%}' for change in changes)} |")
    return lines


def quantizer_table(directory: Path) -> list[str]:
    """Loss before and after equal training, by stages and quantizer."""
    lines = [
        "| stages | quantizer | row multiplier | before training | after training |",
        "|--:|---|---|--:|--:|",
    ]
    for run in EXPERIMENTS["quantizers"].runs:
        found = results_of(directory, run)
        if found and run.recipe is not None:
            before = found[0]["untrained"]["loss"]
            recipe = run.recipe
            cells = [
                str(recipe["stages"]), recipe["quantizer"] + (", scales learned" if recipe.get("learned_scales") else ""),
                recipe["row_multiplier"],
                f"{before:.3f}", spread([result["kernels"]["exact"]["loss"] for result in found], 3),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(directory: Path, name: str, picture: Path) -> None:
    """Evaluation loss over tokens, one line per run (mean over seeds)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=110)
    for run in EXPERIMENTS[name].runs:
        points: dict[int, list[float]] = {}
        for result in results_of(directory, run):
            for entry in result["curve"]:
                if "eval_loss" in entry:
                    points.setdefault(entry["tokens"], []).append(entry["eval_loss"])
        points = {tokens: losses for tokens, losses in points.items() if tokens}
        if points:
            axes.plot(list(points), [statistics.mean(losses) for losses in points.values()], label=run.label, linewidth=1.4)
    axes.set_xlabel("tokens of training")
    axes.set_ylabel("nats per token, held-out text")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)


def tables(
    directory: Annotated[Path, typer.Argument(help="What compare.py was given as --work.")],
    into: Annotated[Path | None, typer.Option(help="Markdown file with marked places; default: print.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder for the curves.")] = None,
) -> None:
    """Make the tables of all experiments that were measured."""
    blocks: dict[str, list[str]] = {}
    for name in EXPERIMENTS:
        if not (directory / name).is_dir():
            continue
        if name == "quantizers":
            blocks[name] = quantizer_table(directory / name)
        else:
            blocks[name] = experiment_table(directory / name, name)
            if name == "stories":
                blocks[f"{name}-kernels"] = kernel_table(directory / name, name)
        if images is not None and name == "stories":
            images.mkdir(parents=True, exist_ok=True)
            draw(directory / name, name, images / f"quality-{name}.png")
    print_or_put(into, blocks)


if __name__ == "__main__":
    typer.run(tables)
