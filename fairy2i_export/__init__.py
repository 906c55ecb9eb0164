"""Compile Fairy2i language models to ONNX with packed 2-bit weights (arXiv 2512.02901)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairy2i_export.layout import PackedLinear, pack, unpack
from fairy2i_export.quantizer import QuantizedLinear, quantize

if TYPE_CHECKING:
    from fairy2i_export.exporter import export
    from fairy2i_export.report import ExportReport
    from fairy2i_export.rewrite import RewriteReport, rewrite_onnx

__all__ = [
    "ExportReport",
    "PackedLinear",
    "QuantizedLinear",
    "RewriteReport",
    "export",
    "pack",
    "quantize",
    "rewrite_onnx",
    "unpack",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # loaded on first use: the exporter needs onnx, which takes a while to import and the quantizer does not need
    if name == "export":
        from fairy2i_export.exporter import export

        return export
    if name == "ExportReport":
        from fairy2i_export.report import ExportReport

        return ExportReport
    if name in ("rewrite_onnx", "RewriteReport"):
        from fairy2i_export import rewrite

        return getattr(rewrite, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
