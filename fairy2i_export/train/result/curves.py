"""The curves of a run as a picture: training and evaluation loss over tokens, and the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_curves(history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write the picture.

    Args:
        history: the Trainer's log; entries with ``loss`` or ``eval_loss``, and ``tokens``.
        path: of the PNG.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for key, label, style in (
        ("loss", "training loss", {"color": "#8fa8c8", "linewidth": 1.0}),
        ("cross_entropy", "of which cross entropy", {"color": "#7aa874", "linewidth": 1.0}),
        ("eval_loss", "evaluation text", {"color": "#b5402f", "marker": "o", "markersize": 3}),
    ):
        points = [(entry["tokens"], entry[key]) for entry in history if key in entry and "tokens" in entry]
        if points:
            losses.plot(*zip(*points, strict=True), label=label, **style)
    losses.set_ylabel("nats per token")
    losses.set_title(title)
    losses.grid(alpha=0.3)
    if losses.get_legend_handles_labels()[0]:
        losses.legend()
    points = [(entry["tokens"], entry["learning_rate"]) for entry in history if "learning_rate" in entry]
    if points:
        rates.plot(*zip(*points, strict=True), color="#666666")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("tokens")
    rates.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
