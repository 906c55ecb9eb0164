"""Backend ``dense``: the dequantized matrix, multipliers included, in a plain ``MatMul``: any ONNX host runs it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.calibrated import ScaledCalibrated
from fairy2i_export.codes.native import F64, Rows, row_blocks
from fairy2i_export.codes.quantizer import QuantizedLinear, Scaled
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Linear
from fairy2i_export.compile.tasks import Put, WeightSource, Workers, relative_error
from fairy2i_export.errors import WeightError
from fairy2i_export.onnx_graph.formats.base import Backend, add_bias
from fairy2i_export.onnx_graph.writer import GraphWriter


def _nodes(graph: GraphWriter, weights: WeightSource, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    n, m = linear.out_features // 2, linear.in_features // 2
    dtype = ir.DataType.FLOAT16 if weights.options.dense_type == "float16" else ir.DataType.FLOAT

    def write(scaled: Scaled | ScaledCalibrated, put: Put, workers: Workers) -> float:
        # MatMul wants [K, N], of which rows of the matrix are columns: it is written when all of them are there
        transposed = np.empty((2 * m, 2 * n), dtype.numpy())

        def rows(part: Rows) -> F64:
            codes, errors = scaled.codes(part)
            upper, lower = slice(*part), slice(n + part[0], n + part[1])
            multiplier = scaled.row_multiplier
            if multiplier is not None:
                multiplier = np.concatenate([multiplier[upper], multiplier[lower]])
            piece = (
                QuantizedLinear(codes, scaled.scales, row_multiplier=multiplier, col_multiplier=scaled.col_multiplier)
                .dequantize("none")
                .T
            )
            with np.errstate(over="ignore"):
                transposed[:, upper], transposed[:, lower] = np.split(piece, 2, axis=1)
            if not (np.isfinite(transposed[:, upper]).all() and np.isfinite(transposed[:, lower]).all()):
                raise WeightError(
                    f"{linear.weight}: values up to {np.abs(piece).max():.3g} do not fit float16; use --dense-type float32"
                )
            return errors

        found = list(workers.in_order(rows, row_blocks(n, m, 1)))
        put("weight_transposed", transposed)
        return relative_error(np.concatenate(found))

    tensor = weights.coded(linear, {"weight_transposed": (dtype, (2 * m, 2 * n))}, write)["weight_transposed"]
    weight = graph.initializer(tensor)
    if dtype == ir.DataType.FLOAT16:  # activations stay float32: half the file, no overflow
        weight = graph.op(f"{linear.name}/weight", "Cast", [weight], to=ir.DataType.FLOAT)
    return add_bias(graph, linear.name, graph.op(linear.name, "MatMul", [x, weight]), bias)


def _stored_bytes(linear: Linear, options: ExportOptions) -> int:
    return (2 if options.dense_type == "float16" else 4) * linear.parameters


def _copied_bytes(linear: Linear, options: ExportOptions) -> int:
    return 4 * linear.parameters  # float32 in either case: constants are cast when the model is loaded


DENSE = Backend(
    "dense",
    "MatMul",
    library=False,
    options=("dense_type",),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=_copied_bytes,
)
