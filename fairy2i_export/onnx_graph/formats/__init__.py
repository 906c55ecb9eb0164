"""Backends: how a layer that was quantized the Fairy2i way is written in ONNX. A new one is a file here and a line below."""

from __future__ import annotations

import math

from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import Linear
from fairy2i_export.onnx_graph.formats.base import Backend, multiplier_outputs
from fairy2i_export.onnx_graph.formats.dense import DENSE
from fairy2i_export.onnx_graph.formats.fairy2i import FAIRY2I
from fairy2i_export.onnx_graph.formats.matmulnbits import MATMULNBITS

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (FAIRY2I, MATMULNBITS, DENSE)}

__all__ = ["BACKENDS", "Backend", "multiplier_bytes", "stored_bytes"]


def stored_bytes(linear: Linear, options: ExportOptions) -> int:
    """Bytes of any linear layer in the exported model, scales included, bias and multipliers not."""
    if linear.treatment == "fairy2i":
        return BACKENDS[options.backend].stored_bytes(linear, options)
    return linear.stored_bytes(options.stages)


def multiplier_bytes(linear: Linear, options: ExportOptions) -> int:
    """Bytes of the multipliers of a quantized layer."""
    return 4 * sum(math.prod(shape) for _, shape in multiplier_outputs(linear, options).values())
