"""Geometry of the charts: numbers in, positions out. The templates only place marks; colours live in the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fairy2i_export.check.page.agreement import Agreement
from fairy2i_export.check.page.collect import Constellation, LayerReport
from fairy2i_export.check.page.palette import SHADES, shade

Format = Callable[[float], str]
_MOST_LABELS = 16  # blocks up to which heat maps show their values


@dataclass(frozen=True)
class Cell:
    """A field of a heat map: number of its shade, text, and what to show when it is pointed at."""

    shade: int
    label: str
    tip: str
    over: bool = False  # beyond its limit

    @property
    def ink(self) -> str:
        """Class of the label: which ink can be read on the shade."""
        return "hi" if 2 * self.shade >= SHADES else "lo"


@dataclass(frozen=True)
class Heatmap:
    """One value per layer: modules down, depth across; layers outside the blocks have rows of their own.

    Attributes:
        name: title.
        columns: labels of the columns, empty where there is no room for all.
        rows: (module, a cell or None for every column).
        low: text of the smallest value.
        high: text of the largest value.
        over: number of cells beyond the limit.
    """

    name: str
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    low: str
    high: str
    over: int


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """A line with its marks: SVG points, and (x, y, tip) of every mark."""

    style: str
    points: str
    marks: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Plot:
    """A plot area with axes; the margins are part of width and height."""

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series] = field(default_factory=list)


def heatmap(
    name: str,
    layers: Sequence[LayerReport],
    value: Callable[[LayerReport], float],
    form: Format,
    *,
    limit: float | None = None,
    tip: Callable[[LayerReport], str] | None = None,
) -> Heatmap:
    """A heat map of one value per layer.

    Args:
        name: title.
        layers: all layers of the model.
        value: of a layer.
        form: makes text of a value.
        limit: values above it are marked.
        tip: more to say about a layer.
    """
    modules = list(dict.fromkeys(layer.module for layer in layers))
    depths = sorted({layer.depth for layer in layers if layer.depth is not None}) or [0]
    values = [value(layer) for layer in layers]
    low, high = min(values), max(values)
    rows: dict[str, list[Cell | None]] = {module: [None] * len(depths) for module in modules}
    for layer, number in zip(layers, values, strict=True):
        column = len(depths) - 1 if layer.depth is None else depths.index(layer.depth)
        rows[layer.module][column] = Cell(
            shade=shade(number, low, high),
            label=form(number) if len(depths) <= _MOST_LABELS else "",
            tip=f"{layer.facts.name}\n{form(number)}" + (f"\n{tip(layer)}" if tip else ""),
            over=limit is not None and not number <= limit,
        )
    every = max(1, math.ceil(len(depths) / 24))
    return Heatmap(
        name=name,
        columns=[str(depth) if i % every == 0 else "" for i, depth in enumerate(depths)],
        rows=list(rows.items()),
        low=form(low),
        high=form(high),
        over=sum(cell.over for row in rows.values() for cell in row if cell is not None),
    )


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)]


def scale_plots(layers: Sequence[LayerReport]) -> list[Plot]:
    """Scales by depth, one plot per module of the blocks, all on one vertical axis; root mean square of re and im."""
    inside = [layer for layer in layers if layer.depth is not None]
    if not inside:
        return []
    depths = sorted({layer.depth for layer in inside if layer.depth is not None})
    tallest = max(float(_plane_scales(layer).max()) for layer in inside)
    ticks = nice_ticks(0, tallest, 3)
    width, height, left, right, top, bottom = 300.0, 196.0, 52.0, 292.0, 12.0, 150.0

    def x_of(depth: int) -> float:
        return left + 8 + (right - left - 16) * (depth - depths[0]) / max(1, depths[-1] - depths[0])

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    plots = []
    every = max(1, math.ceil(len(depths) / 8))
    for module in dict.fromkeys(layer.module for layer in inside):
        members = sorted((layer for layer in inside if layer.module == module), key=lambda layer: layer.depth or 0)
        stages = max(layer.facts.stages for layer in members)
        series = []
        for stage in range(stages):
            for matrix, letter in enumerate("UW"):
                marks = []
                for layer in members:
                    if layer.facts.stages <= stage or layer.depth is None:
                        continue
                    value = float(_plane_scales(layer)[stage, matrix])
                    s_re, s_im = layer.facts.scales[stage, matrix]
                    tip = f"{layer.facts.name}\n{letter}, stage {stage}: {value:.4g} (re {s_re:.4g}, im {s_im:.4g})"
                    marks.append((x_of(layer.depth), y_of(value), tip))
                series.append(Series(f"s{stage} {letter.lower()}", _points(marks), marks))
        x_ticks = [Tick(x_of(depth), str(depth)) for depth in depths[::every]]
        y_ticks = [Tick(y_of(tick), f"{tick:.3g}") for tick in ticks]
        plots.append(Plot(module, width, height, left, right, top, bottom, x_ticks, y_ticks, series))
    return plots


def agreement_plot(result: Agreement) -> Plot:
    """KL divergence by position, logarithmic; positions whose most likely token differs are a series of their own."""
    width, height, left, right, top, bottom = 960.0, 280.0, 56.0, 948.0, 12.0, 236.0
    shown = np.maximum(result.kl, 1e-12)
    low, high = math.floor(math.log10(float(np.quantile(shown, 0.02)))), math.ceil(math.log10(float(shown.max())) + 1e-9)
    low, high = max(low, high - 10), max(high, low + 1)
    count = len(shown)

    def x_of(position: float) -> float:
        return left + 6 + (right - left - 12) * position / max(1, count - 1)

    def y_of(value: float) -> float:
        place = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return bottom - (bottom - top) * min(1.0, place)

    marks: dict[bool, list[tuple[float, float, str]]] = {True: [], False: []}
    for position in range(count):
        place = (x_of(position), y_of(float(shown[position])), token_tip(result, position))
        marks[bool(result.same[position])].append(place)
    window = max(1, min(32, count // 4))
    running = np.exp(np.convolve(np.log(shown), np.ones(window) / window, mode="valid"))
    middle = [(x_of(i + (window - 1) / 2), y_of(float(value)), "") for i, value in enumerate(running)]
    return Plot(
        title="",
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[
            Tick(x_of(tick), f"{tick:.0f}") for tick in nice_ticks(0, count - 1, 8) if tick <= count - 1 and tick % 1 == 0
        ],
        y_ticks=[Tick(y_of(10.0**power), f"1e{power}" if power else "1") for power in _decades(low, high)],
        series=[
            Series("average", _points(middle), []),
            Series("same", "", marks[True]),
            Series("differs", "", marks[False]),
        ],
    )


def token_tip(result: Agreement, position: int) -> str:
    """What happens at a position, for a tool tip."""
    (ours, theirs), (p_ours, p_theirs) = result.best[position], result.probability[position]
    text = f"position {position}: {result.tokens[position]!r}\nKL {result.kl[position]:.2g} nats\n"
    if result.same[position]:
        return text + f"next: {ours!r}, {p_ours:.1%} (model), {p_theirs:.1%} ({result.reference})"
    return text + f"next: {ours!r}, {p_ours:.1%} (model); {theirs!r}, {p_theirs:.1%} ({result.reference})"


@dataclass(frozen=True)
class Cloud:
    """A constellation in a square of 200 x 200, origin in the middle."""

    name: str
    module: str
    dots: str  # SVG path: a dot for every latent entry
    levels: list[tuple[float, float, float, str]]  # x, y, radius, tip
    unit: float  # length of one tick
    unit_label: str


def cloud(picture: Constellation, module: str) -> Cloud:
    """Where the points of a constellation go; the outermost level stands at three quarters of the way to the edge."""
    reach = float(np.abs(np.concatenate([picture.levels.real, picture.levels.imag])).max()) or 1.0
    factor = 72 / reach
    points = picture.cloud * factor
    inside = (np.abs(points.real) < 99) & (np.abs(points.imag) < 99)
    dots = "".join(f"M{x:.1f} {-y:.1f}h0" for x, y in zip(points.real[inside], points.imag[inside], strict=True))
    levels = []
    for level, part in zip(picture.levels, picture.shares, strict=True):
        tip = f"{level.real:+.3g} {level.imag:+.3g}i\n{part:.1%} of the entries"
        # the area is the share; all levels together have the same area for any number of stages
        levels.append((float(level.real * factor), float(-level.imag * factor), max(0.5, 26 * math.sqrt(part)), tip))
    unit = nice_ticks(0, reach, 2)[1]
    return Cloud(picture.layer, module, dots, levels, unit * factor, f"{unit:.3g}")


def _plane_scales(layer: LayerReport) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Root mean square over real and imaginary axis, float64 [stages, 2]."""
    return np.asarray(np.sqrt(np.square(layer.facts.scales, dtype=np.float64).mean(axis=-1)))


def _points(marks: Sequence[tuple[float, float, str]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in marks)


def _decades(low: int, high: int) -> range:
    return range(low, high + 1, max(1, math.ceil((high - low) / 6)))
