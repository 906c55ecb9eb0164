"""Formats with plain float matrices in ``MatMul``, which any ONNX host runs.

``dense`` holds the dequantized matrix of a quantized layer, multipliers included; ``PLAIN`` the weight of one that is left alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.native import F64, Rows, Workers, row_blocks
from fairy2i_export.codes.quantized import Coded, QuantizedLinear, relative_error
from fairy2i_export.errors import WeightError
from fairy2i_export.onnx_graph.formats.base import Format, Linear, Put, Settings, Weights, add_bias
from fairy2i_export.onnx_graph.writer import GraphWriter


def _nodes(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    n, m = linear.out_features // 2, linear.in_features // 2
    dtype = ir.DataType.FLOAT16 if weights.settings.dense_type == "float16" else ir.DataType.FLOAT

    def write(coded: Coded, put: Put, workers: Workers) -> float:
        # MatMul wants [K, N], of which rows of the matrix are columns: it is written when all of them are there
        transposed = np.empty((2 * m, 2 * n), dtype.numpy())

        def rows(part: Rows) -> F64:
            codes, errors = coded.codes(part)
            upper, lower = slice(*part), slice(n + part[0], n + part[1])
            multiplier = coded.row_multiplier
            if multiplier is not None:
                multiplier = np.concatenate([multiplier[upper], multiplier[lower]])
            rows_alone = QuantizedLinear(codes, coded.scales, row_multiplier=multiplier, col_multiplier=coded.col_multiplier)
            piece = rows_alone.dequantize("none").T
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


def _stored_bytes(linear: Linear, settings: Settings) -> int:
    return (2 if settings.dense_type == "float16" else 4) * linear.parameters


def _copied_bytes(linear: Linear, settings: Settings) -> int:
    return 4 * linear.parameters  # float32 in either case: constants are cast when the model is loaded


def _plain_nodes(graph: GraphWriter, weights: Weights, linear: Linear, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    # MatMul wants [in, out]; under a name of its own, because a tied lm_head shares the tensor with the embedding
    weight = graph.initializer(weights.dense(linear.weight, name=f"{linear.name}.weight_transposed", transposed=True))
    return add_bias(graph, linear.name, graph.op(linear.name, "MatMul", [x, weight]), bias)


def _float32_bytes(linear: Linear, settings: Settings) -> int:
    return 4 * linear.parameters


DENSE = Format(
    "dense",
    "MatMul",
    library=False,
    options=("dense_type",),
    nodes=_nodes,
    stored_bytes=_stored_bytes,
    copied_bytes=_copied_bytes,
)
PLAIN = Format(
    "plain",
    "MatMul",
    library=False,
    options=(),
    nodes=_plain_nodes,
    stored_bytes=_float32_bytes,
    copied_bytes=_float32_bytes,
)
