"""The page: charts and numbers put into the template."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fairy2i_export.check.page.charts import agreement_plot, cloud, heatmap, scale_plots, token_tip
from fairy2i_export.check.page.collect import LayerReport, ReportData
from fairy2i_export.check.page.palette import DARK, LIGHT, SHADES, ramp, shade
from fairy2i_export.onnx_graph.stage_map import kinds_of_layers
from fairy2i_export.output.contract.layers import LIMITS
from fairy2i_export.output.metadata import ModelMetadata
from fairy2i_export.output.sizes import human_bytes
from fairy2i_runtime.version import __version__

_HERE = Path(__file__).parent
_KERNEL_TABS = (
    (("lut", "real"), "default, real activations"),
    (("lut", "gaussian"), "default, Gaussian"),
    (("exact", "real"), "exact, real activations"),
    (("exact", "gaussian"), "exact, Gaussian"),
)
CODE_NAMES = ("+1", "+i", "−1", "−i")


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    size: int
    share: float  # of the whole bar
    style: str


@dataclass(frozen=True)
class Tile:
    """A number worth a glance."""

    value: str
    name: str
    detail: str


def render(data: ReportData) -> str:
    """The page as HTML. It loads nothing from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,  # names, metadata and texts come from files that need not be trusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**_context(data))


def _context(data: ReportData) -> dict[str, Any]:
    layers = data.layers
    by_name = {layer.facts.name: layer for layer in layers}
    stages = {layer.facts.name: layer.facts.stages for layer in layers}
    parameters = {layer.facts.name: layer.facts.parameters for layer in layers}
    numbers = sorted(set(stages.values()))
    kernel_maps = [
        heatmap(name, layers, lambda layer, key=key: layer.kernel.errors[key], small_percent, limit=LIMITS[key])  # type: ignore[misc]
        for key, name in _KERNEL_TABS
    ]
    result = data.agreement
    top = float(np.quantile(result.kl, 0.98)) or 1.0
    return {
        "data": data,
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        "script": Markup((_HERE / "script.js").read_text(encoding="utf-8")),
        "light": ramp(LIGHT),
        "dark": ramp(DARK),
        "shades": SHADES,
        "tiles": tiles(data),
        "sizes": sizes(data),
        "human_bytes": human_bytes,
        "quantization": heatmap("quantization", layers, lambda layer: layer.quantization_error, percent, tip=_stage_text),
        "kernels": list(zip(kernel_maps, [LIMITS[key] for key, _ in _KERNEL_TABS], strict=True)),
        "entropy": heatmap(
            "entropy", layers, lambda layer: float(layer.facts.entropy.mean()), lambda bits: f"{bits:.3f}", tip=_share_text
        ),
        "planes": code_shares(layers),
        "code_names": CODE_NAMES,
        "clouds": [cloud(picture, by_name[picture.layer].module) for picture in data.constellations],
        "scale_plots": scale_plots(layers),
        "stages": numbers[-1],
        "terms": " or ".join(map(str, numbers)),
        "numbers": numbers,
        "kinds": kinds_of_layers(stages, parameters) if len(numbers) > 1 else [],
        "agreement": agreement_plot(result),
        "tokens": [
            (text, shade(float(kl), 0, top), not same, token_tip(result, position))
            for position, (text, kl, same) in enumerate(zip(result.tokens, result.kl, result.same, strict=True))
        ],
        "rows_scaled": ModelMetadata(data.facts.metadata).get("row_multiplier", "none") != "none",
        "top_kl": top,
        "differing": int((~result.same).sum()),
        "percent": percent,
        "small_percent": small_percent,
        "limits": LIMITS,
        "version": __version__,
        "date": datetime.date.today().isoformat(),
    }


def percent(value: float) -> str:
    """0.4321 -> "43.2 %"."""
    return f"{100 * value:.1f} %"


def small_percent(value: float) -> str:
    """0.0087 -> "0.87 %", 3e-7 -> "3.0e-7"."""
    if value >= 1e-4:
        return f"{100 * value:.2f} %"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def tiles(data: ReportData) -> list[Tile]:
    """The numbers at the top."""
    layers = data.layers
    stored, weights = sum(layer.facts.stored_bytes for layer in layers), sum(layer.facts.parameters for layer in layers)
    errors = [layer.quantization_error for layer in layers]
    worst = max(layers, key=lambda layer: layer.quantization_error)
    kernel = max(layers, key=lambda layer: layer.kernel.errors["lut", "real"])
    loss = data.agreement.loss.mean(axis=0)
    model_bytes = _model_bytes(data)
    return [
        Tile(
            f"{8 * stored / weights:.2f}",
            "bits per weight",
            f"{weights:,} weights in {len(layers)} layers, padding included",
        ),
        Tile(
            human_bytes(model_bytes),
            "model",
            f"1 : {data.source_bytes / model_bytes:.1f} of the checkpoint's {human_bytes(data.source_bytes)}",
        ),
        Tile(
            percent(sum(errors) / len(errors)),
            "change of the weights",
            f"mean; most in {worst.facts.name}: {percent(max(errors))}",
        ),
        Tile(
            small_percent(kernel.kernel.errors["lut", "real"]),
            "kernel error",
            f"default mode, worst layer ({kernel.facts.name}); limit {small_percent(LIMITS['lut', 'real'])}",
        ),
        Tile(
            f"{np.exp(loss[0]):.2f}",
            "perplexity of the text below",
            f"{data.agreement.reference}, same weights: {np.exp(loss[1]):.2f}",
        ),
        *_float_tile(data),
        Tile(
            f"{100 * data.agreement.same.mean():.1f} %",
            "same most likely token",
            f"{int(data.agreement.same.sum())} of {len(data.agreement.same)} positions, model and {data.agreement.reference}",
        ),
    ]


def _float_tile(data: ReportData) -> list[Tile]:
    """What quantization cost, where the source can be run as it is."""
    found = data.float_source
    if found is None:
        return []
    return [
        Tile(
            f"{found.reference_perplexity:.2f}",
            "perplexity of the float source",
            f"the model's is {np.exp(found.log_ratio):.2f} times that (log ratio ± {found.perplexity_error:.2f}); same most "
            f"likely token: {100 * found.top1_agreement:.1f} %",
        )
    ]


def _model_bytes(data: ReportData) -> int:
    name = data.facts.model_file.name
    return sum(size for file, size in data.facts.files.items() if file.startswith(name))


def sizes(data: ReportData) -> dict[str, Any]:
    """The size bars: the checkpoint, the model drawn to the same scale, and the model's parts enlarged."""
    total = _model_bytes(data)
    parts = dict(data.facts.tensor_bytes)
    parts["graph and alignment"] = total - sum(parts.values())
    segments = [Segment(name, size, size / total, f"p{i % 8}") for i, (name, size) in enumerate(parts.items()) if size > 0]
    largest = max(total, data.source_bytes)
    others = {name: size for name, size in data.facts.files.items() if not name.startswith(data.facts.model_file.name)}
    return {
        "segments": segments,
        "total": total,
        "model_share": total / largest,
        "source_share": data.source_bytes / largest,
        "others": sum(others.values()),
        "memory": data.facts.memory,
    }


def code_shares(layers: list[LayerReport]) -> list[tuple[str, list[float], float]]:
    """(plane, shares of the four codes, bits per code) over the whole model, such as ("U, stage 0", ...)."""
    found = []
    for stage in range(max(layer.facts.stages for layer in layers)):
        for matrix, letter in enumerate("UW"):
            counts = np.sum(
                [layer.facts.code_counts[stage, matrix] for layer in layers if layer.facts.stages > stage], axis=0
            )
            if not counts.any():  # of a U that no layer has
                continue
            share = counts / counts.sum()
            bits = float(-(share * np.log2(np.maximum(share, 1e-300))).sum())
            found.append((f"{letter}, stage {stage}", [float(value) for value in share], bits))
    return found


def _stage_text(layer: LayerReport) -> str:
    shape = f"{layer.facts.shape[0]} × {layer.facts.shape[1]}"
    if len(layer.stage_errors) < layer.facts.stages:
        return f"all {layer.facts.stages} stages together\n{shape}"  # the value itself is in every tool tip
    steps = ", ".join(f"{count + 1}: {percent(error)}" for count, error in enumerate(layer.stage_errors))
    return f"after stage {steps}\n{shape}"


def _share_text(layer: LayerReport) -> str:
    lines = []
    for stage, planes in enumerate(layer.facts.code_counts):
        for letter, counts in zip("UW", planes, strict=True):
            if not counts.any():
                continue
            lines.append(f"{letter}{stage}: " + " ".join(f"{100 * value:.1f}" for value in counts / counts.sum()) + " %")
    return "\n".join([f"shares of {', '.join(CODE_NAMES)}", *lines])
