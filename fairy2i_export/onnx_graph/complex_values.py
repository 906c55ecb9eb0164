"""Values of models with complex weights, which are halves: real parts of all channels, then imaginary parts."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.codes.rounding import SMALLEST
from fairy2i_export.onnx_graph.writer import CONSTANT, GraphWriter


def rounded_halves(graph: GraphWriter, x: ir.Value, half: int, bits: int) -> ir.Value:
    """Round every half of every row to integers of ``bits`` bits times a scale of its own, and keep it in float32.

    Layers that read the same values share the result.

    Args:
        graph: to append to.
        x: [batch, sequence, 2 * half].
        half: channels.
        bits: the largest magnitude becomes 2^(bits - 1) - 1.
    """
    name = f"{str(x.name).removesuffix('/output')}/int{bits}"
    if name not in graph.shared:
        g, top = graph, float(2 ** (bits - 1) - 1)
        halves = g.op(f"{name}/halves", "Reshape", [x, g.ints(0, 0, 2, half)])
        magnitudes = g.op(f"{name}/magnitudes", "Abs", [halves])
        largest = g.op(f"{name}/largest", "ReduceMax", [magnitudes, g.ints(-1)], keepdims=1)
        bounded = g.op(f"{name}/bounded", "Max", [largest, g.scalar(SMALLEST)])
        factor = g.op(f"{name}/factor", "Div", [g.scalar(top), bounded])
        steps = g.op(f"{name}/steps", "Mul", [halves, factor])
        rounded = g.op(f"{name}/round", "Round", [steps])
        clipped = g.op(f"{name}/clip", "Clip", [rounded, g.scalar(-top - 1), g.scalar(top)])
        values = g.op(f"{name}/values", "Div", [clipped, factor])
        graph.shared[name] = g.op(name, "Reshape", [values, g.ints(0, 0, 2 * half)])
    return graph.shared[name]


def whole_heads(graph: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """[batch, sequence, (part, head, channel)] to [batch, sequence, (head, part, channel)]."""
    order = [part * heads + head for head in range(heads) for part in range(2)]
    return _reordered(graph, x, order, head_dim, f"heads_of_{heads}")


def halves_of_heads(graph: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """The inverse of :func:`whole_heads`."""
    order = [head * 2 + part for part in range(2) for head in range(heads)]
    return _reordered(graph, x, order, head_dim, f"halves_of_{heads}_heads")


def _reordered(graph: GraphWriter, x: ir.Value, order: list[int], head_dim: int, what: str) -> ir.Value:
    """The parts of heads, of half a head's channels each, in another order."""
    g, name = graph, f"{str(x.name).removesuffix('/output')}/{what}"
    parts = g.op(f"{name}/parts", "Reshape", [x, g.ints(0, 0, len(order), head_dim // 2)])
    ordered = g.op(f"{name}/order", "Gather", [parts, g.ints(*order, name=f"{CONSTANT}{what}")], axis=2)
    return g.op(name, "Reshape", [ordered, g.ints(0, 0, len(order) * head_dim // 2)])


def complex_gate(graph: GraphWriter, name: str, gate: ir.Value, up: ir.Value, channels: int) -> ir.Value:
    """conj(a) * up, where a has the squares of the gate's parts, and is 0 where both parts are negative.

    Args:
        graph: to append to.
        name: of the feed-forward block.
        gate: G [..., 2 * channels].
        up: U, likewise.
        channels: of a half.
    """
    g = graph
    gate_re, gate_im = _halves(g, f"{name}/gate", gate, channels)
    up_re, up_im = _halves(g, f"{name}/up", up, channels)
    larger = g.op(f"{name}/larger", "Max", [gate_re, gate_im])
    dead = g.op(f"{name}/dead", "Less", [larger, g.scalar(0.0)])
    live_re, live_im = (
        g.op(f"{name}/live_{part}", "Where", [dead, g.scalar(0.0), value])
        for part, value in (("re", gate_re), ("im", gate_im))
    )
    square_re = g.op(f"{name}/square_re", "Mul", [live_re, live_re])
    square_im = g.op(f"{name}/square_im", "Mul", [live_im, live_im])
    products = {
        (a, b): g.op(f"{name}/product_{a}_{b}", "Mul", [square, value])
        for a, square in (("re", square_re), ("im", square_im))
        for b, value in (("re", up_re), ("im", up_im))
    }
    re = g.op(f"{name}/re", "Add", [products["re", "re"], products["im", "im"]])
    im = g.op(f"{name}/im", "Sub", [products["re", "im"], products["im", "re"]])
    return g.op(f"{name}/gated", "Concat", [re, im], axis=-1)


def _halves(graph: GraphWriter, name: str, x: ir.Value, channels: int) -> list[ir.Value]:
    parts = [ir.Value(name=f"{name}_{part}") for part in ("re", "im")]
    graph.node(f"{name}/split", "Split", [x, graph.ints(channels, channels)], parts, axis=-1)
    return parts
