"""Backend ``fairy2i``, the default: one ``ai.fairy2i::Fairy2iMatMul`` node on packed codes (docs/format.md)."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.codes.calibrated import ScaledCalibrated
from fairy2i_export.codes.layout import LAYOUT_VERSION, SCALE_SCOPE_MATRIX, packed_size
from fairy2i_export.codes.quantizer import Scaled
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Linear
from fairy2i_export.compile.tasks import Outputs, Put, WeightSource, Workers, pack_scaled
from fairy2i_export.onnx_graph.formats.base import Backend, multiplier_outputs, put_multipliers
from fairy2i_export.onnx_graph.function import DOMAIN, OP_NAME
from fairy2i_export.onnx_graph.writer import GraphWriter


def _nodes(graph: GraphWriter, weights: WeightSource, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    n, m, stages = linear.out_features // 2, linear.in_features // 2, weights.options.stages
    outputs: Outputs = {
        "packed": (ir.DataType.UINT8, (packed_size(n, m, stages),)),
        "scales": (ir.DataType.FLOAT, (stages, 2, 2)),
    }
    outputs |= multiplier_outputs(linear, weights.options)

    def write(scaled: Scaled | ScaledCalibrated, put: Put, workers: Workers) -> float:
        packed, error = pack_scaled(scaled, workers.pool)
        put("packed", packed)
        put("scales", scaled.scales)
        put_multipliers(scaled, put)
        return error

    operands = {key: graph.initializer(tensor) for key, tensor in weights.coded(linear, outputs, write).items()}
    inputs = [
        x,
        operands["packed"],
        operands["scales"],
        bias,
        operands.get("row_multiplier"),
        operands.get("col_multiplier"),
    ]
    return graph.op(
        linear.name,
        OP_NAME,
        inputs,
        domain=DOMAIN,
        K=linear.in_features,
        N=linear.out_features,
        stages=stages,
        layout_version=LAYOUT_VERSION,
        scale_scope=SCALE_SCOPE_MATRIX,
    )


def _stored_bytes(linear: Linear, options: ExportOptions) -> int:
    return linear.stored_bytes(options.stages)


FAIRY2I = Backend(
    "fairy2i",
    OP_NAME,
    library=True,
    options=(),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=lambda linear, options: 0,
)
