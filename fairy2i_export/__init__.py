"""Compile Fairy2i language models to ONNX with packed 2-bit weights (arXiv 2512.02901)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy2i_export.codes.layout import PackedLinear, pack, unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.quantizer import quantize
from fairy2i_runtime.version import __version__

if TYPE_CHECKING:
    from fairy2i_export.compile.report import ExportReport
    from fairy2i_export.compile.run import export
    from fairy2i_export.output.progress import Observer
    from fairy2i_export.rewrite.pipeline import rewrite_onnx
    from fairy2i_export.rewrite.report import RewriteReport

__all__ = [
    "ExportReport",
    "Observer",
    "PackedLinear",
    "QuantizedLinear",
    "RewriteReport",
    "__version__",
    "export",
    "pack",
    "quantize",
    "rewrite_onnx",
    "unpack",
]
# loaded on first use: these need onnx, which takes a while to import and the quantizer does not need
_MODULES = {
    "ExportReport": "compile.report",
    "Observer": "output.progress",
    "RewriteReport": "rewrite.report",
    "export": "compile.run",
    "rewrite_onnx": "rewrite.pipeline",
}
# modules that documentation named before they moved: scripts and launch commands hold those names
__path__.append(str(Path(__file__).with_name("former")))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
