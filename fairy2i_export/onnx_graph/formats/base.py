"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fairy2i_export.codes.calibrated import ScaledCalibrated
from fairy2i_export.codes.quantizer import Scaled
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Linear
from fairy2i_export.compile.tasks import Outputs, Put, WeightSource
from fairy2i_export.onnx_graph.writer import GraphWriter

# graph, weights, layer, x [..., K], bias [N] or None -> y [..., N]
MakeNodes = Callable[[GraphWriter, WeightSource, Linear, ir.Value, ir.Value | None], ir.Value]


@dataclass(frozen=True)
class Backend:
    """One way to write a quantized linear layer in ONNX.

    Attributes:
        name: for ``--backend``.
        operator: the ONNX operator that multiplies, for reports.
        library: whether the model needs the operator library (or, slowly, the function body that then goes with it).
        options: export options, by name, that mean something to this backend only.
        nodes: appends the nodes of a layer.
        stored_bytes: bytes of a layer in the file without bias and multipliers, from its shape.
        copied_bytes: bytes of the copy that ONNX Runtime makes of them for its kernels when it loads the model; 0 if they
            are used where they lie in the mapped file.
    """

    name: str
    operator: str
    library: bool
    options: tuple[str, ...]
    nodes: MakeNodes
    stored_bytes: Callable[[Linear, ExportOptions], int]
    copied_bytes: Callable[[Linear, ExportOptions], int]


def multiplier_outputs(linear: Linear, options: ExportOptions) -> Outputs:
    """The initializers for the multipliers that a layer has."""
    outputs: Outputs = {}
    if options.row_multiplier != "none":
        outputs["row_multiplier"] = (ir.DataType.FLOAT, (linear.out_features,))
    if options.col_multiplier != "none":
        outputs["col_multiplier"] = (ir.DataType.FLOAT, (linear.in_features,))
    return outputs


def put_multipliers(scaled: Scaled | ScaledCalibrated, put: Put) -> None:
    """Write the initializers of :func:`multiplier_outputs`."""
    if scaled.row_multiplier is not None:
        put("row_multiplier", scaled.row_multiplier)
    if scaled.col_multiplier is not None:
        put("col_multiplier", scaled.col_multiplier)


def add_bias(graph: GraphWriter, name: str, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    """The product plus the bias, where there is one."""
    return product if bias is None else graph.op(f"{name}/bias", "Add", [product, bias])
