"""Format ``fairy2i``, the default: packed codes (docs/format.md) in one ``ai.fairy2i::Fairy2iMatMul`` node.

Layers that read the same x go into one node of ``Fairy2iMatMul2`` or ``3``. Their initializers are those that they have alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fairy2i_export.codes.layout import LAYOUT_CONJUGATE, LAYOUT_VERSION, pack_coded, packed_size, stored_scales
from fairy2i_export.codes.native import Workers
from fairy2i_export.codes.quantized import Coded
from fairy2i_export.onnx_graph.formats.base import (
    Format,
    Linear,
    Outputs,
    Put,
    Settings,
    Weights,
    bias_of,
    multiplier_outputs,
    put_multipliers,
)
from fairy2i_export.onnx_graph.operator import OP_NAME, Layer, Operands, make_node
from fairy2i_export.onnx_graph.writer import GraphWriter


def _nodes(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    return _append(graph, [linear], [_operands(graph, weights, linear, bias)], x)[0]


def _joint_node(graph: GraphWriter, weights: Weights, linears: Sequence[Linear], x: ir.Value) -> list[ir.Value]:
    operands = [_operands(graph, weights, linear, bias_of(graph, weights, linear)) for linear in linears]
    return _append(graph, linears, operands, x)


def _append(graph: GraphWriter, linears: Sequence[Linear], operands: Sequence[Operands], x: ir.Value) -> list[ir.Value]:
    layers = [
        Layer(linear.name, given, ir.Value(name=f"{linear.name}/output"), linear.out_features, linear.stages)
        for linear, given in zip(linears, operands, strict=True)
    ]
    first = linears[0]
    graph.add(make_node(layers, x, k=first.in_features, layout=_layout(first), activation_bits=first.activation_bits))
    return [layer.output for layer in layers]


def _operands(graph: GraphWriter, weights: Weights, linear: Linear, bias: ir.Value | None) -> Operands:
    n, k, stages, layout = linear.out_features, linear.in_features, linear.stages, _layout(linear)
    outputs: Outputs = {
        "packed": (ir.DataType.UINT8, (packed_size(n // 2, k // 2, stages, layout),)),
        "scales": (ir.DataType.FLOAT, (stages, 2, 2)),
    }
    outputs |= multiplier_outputs(linear, weights.settings)

    def write(coded: Coded, put: Put, workers: Workers) -> float:
        packed, error = pack_coded(coded, workers.pool, layout)
        put("packed", packed)
        put("scales", stored_scales(coded.scales, layout))
        put_multipliers(coded, put)
        return error

    made = {key: graph.initializer(tensor) for key, tensor in weights.coded(linear, outputs, write).items()}
    return Operands(bias=bias, **made)


def _layout(linear: Linear) -> int:
    return LAYOUT_CONJUGATE if linear.conjugate else LAYOUT_VERSION


def _stored_bytes(linear: Linear, settings: Settings) -> int:
    n, m, stages = linear.out_features // 2, linear.in_features // 2, linear.stages
    return packed_size(n, m, stages, _layout(linear)) + 16 * stages


FAIRY2I = Format(
    "fairy2i",
    OP_NAME,
    library=True,
    options=(),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=lambda linear, settings: 0,
    rounds_activations=True,
    joint_node=_joint_node,
)
