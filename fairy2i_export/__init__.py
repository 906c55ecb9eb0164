"""Compile Fairy2i language models to ONNX with packed 2-bit weights (arXiv 2512.02901)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy2i_export.codes.layout import PackedLinear, pack, unpack
from fairy2i_export.codes.quantizer import QuantizedLinear, quantize

if TYPE_CHECKING:
    from fairy2i_export.compile.report import ExportReport
    from fairy2i_export.compile.run import export
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
# modules that documentation named before they moved: scripts and launch commands hold those names
__path__.append(str(Path(__file__).with_name("former")))


def __getattr__(name: str) -> Any:
    # loaded on first use: the exporter needs onnx, which takes a while to import and the quantizer does not need
    if name == "export":
        from fairy2i_export.compile.run import export

        return export
    if name == "ExportReport":
        from fairy2i_export.compile.report import ExportReport

        return ExportReport
    if name in ("rewrite_onnx", "RewriteReport"):
        from fairy2i_export import rewrite

        return getattr(rewrite, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
