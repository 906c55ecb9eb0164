"""Formats: how a linear layer is written in ONNX. A new one is a file here and a row in onnx_graph/choices.py.

``FORMATS`` are those that a quantized layer may have (``--backend``); layers that are left alone are written plainly or rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from fairy2i_export.onnx_graph.choices import FORMATS
from fairy2i_export.onnx_graph.complex_values import rounded_halves
from fairy2i_export.onnx_graph.formats.base import Format, Linear, Settings, Weights, bias_of, multiplier_outputs
from fairy2i_export.onnx_graph.formats.dense import PLAIN
from fairy2i_export.onnx_graph.formats.rounded import INT4, INT8
from fairy2i_export.onnx_graph.writer import GraphWriter

_OTHERS: dict[str, Format] = {"dense": PLAIN, "int8": INT8, "int4": INT4}  # by treatment

__all__ = [
    "FORMATS",
    "Format",
    "Linear",
    "Settings",
    "Weights",
    "linear_node",
    "linear_nodes",
    "multiplier_bytes",
    "stored_bytes",
]


def format_of(linear: Linear, settings: Settings) -> Format:
    """The format that a layer is written in."""
    return FORMATS[settings.backend] if linear.treatment == "fairy2i" else _OTHERS[linear.treatment]


def linear_node(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value) -> ir.Value:
    """Append the node, called after its module, that computes ``x @ weight.T + bias``."""
    bias = bias_of(graph, weights, linear)
    written = format_of(linear, weights.settings)
    if linear.activation_bits and not written.rounds_activations:
        x = rounded_halves(graph, x, linear.in_features // 2, linear.activation_bits)
    return written.nodes(graph, weights, linear, x, bias)


def linear_nodes(graph: GraphWriter, weights: Weights, linears: Sequence[Linear], x: ir.Value) -> list[ir.Value]:
    """Append what computes that for several layers of one x: one node for all, if all are of a format that has such a node."""
    written = [format_of(linear, weights.settings) for linear in linears]
    joint, alike = written[0].joint_node, {(linear.conjugate, linear.activation_bits) for linear in linears}
    if joint is not None and len(alike) == 1 and all(other is written[0] for other in written):
        return joint(graph, weights, linears, x)
    return [linear_node(graph, weights, linear, x) for linear in linears]


def stored_bytes(linear: Linear, settings: Settings) -> int:
    """Bytes of any linear layer in the exported model, scales included, bias and multipliers not."""
    return format_of(linear, settings).stored_bytes(linear, settings)


def multiplier_bytes(linear: Linear, settings: Settings) -> int:
    """Bytes of the multipliers of a quantized layer."""
    return 4 * sum(math.prod(shape) for _, shape in multiplier_outputs(linear, settings).values())
