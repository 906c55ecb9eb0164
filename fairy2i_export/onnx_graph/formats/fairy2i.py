"""Format ``fairy2i``, the default: one ``ai.fairy2i::Fairy2iMatMul`` node on packed codes (docs/format.md)."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.codes.layout import pack_coded, packed_size
from fairy2i_export.codes.native import Workers
from fairy2i_export.codes.quantized import Coded
from fairy2i_export.onnx_graph.formats.base import (
    Format,
    Linear,
    Outputs,
    Put,
    Settings,
    Weights,
    multiplier_outputs,
    put_multipliers,
)
from fairy2i_export.onnx_graph.operator import OP_NAME, Operands, make_node
from fairy2i_export.onnx_graph.writer import GraphWriter


def _nodes(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    n, k, stages = linear.out_features, linear.in_features, linear.stages
    outputs: Outputs = {
        "packed": (ir.DataType.UINT8, (packed_size(n // 2, k // 2, stages),)),
        "scales": (ir.DataType.FLOAT, (stages, 2, 2)),
    }
    outputs |= multiplier_outputs(linear, weights.settings)

    def write(coded: Coded, put: Put, workers: Workers) -> float:
        packed, error = pack_coded(coded, workers.pool)
        put("packed", packed)
        put("scales", coded.scales)
        put_multipliers(coded, put)
        return error

    made = {key: graph.initializer(tensor) for key, tensor in weights.coded(linear, outputs, write).items()}
    y = ir.Value(name=f"{linear.name}/output")
    return graph.add(make_node(linear.name, x, Operands(bias=bias, **made), y, k=k, n=n, stages=stages))


def _stored_bytes(linear: Linear, settings: Settings) -> int:
    return packed_size(linear.out_features // 2, linear.in_features // 2, linear.stages) + 16 * linear.stages


FAIRY2I = Format(
    "fairy2i",
    OP_NAME,
    library=True,
    options=(),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=lambda linear, settings: 0,
)
