"""Compile Fairy2i language models to ONNX with packed 2-bit weights (arXiv 2512.02901)."""

from __future__ import annotations

from fairy2i_export.layout import PackedLinear, pack, unpack
from fairy2i_export.quantizer import QuantizedLinear, quantize

__all__ = ["PackedLinear", "QuantizedLinear", "pack", "quantize", "unpack"]
__version__ = "0.1.0"
