"""Compile Fairy2i language models to ONNX with packed 2-bit weights (arXiv 2512.02901)."""

from __future__ import annotations

from fairy2i_runtime.version import __version__

TYPE_CHECKING = False  # commands begin here, and typing itself takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from fairy2i_export.codes.layout import PackedLinear, pack, unpack
    from fairy2i_export.codes.quantized import QuantizedLinear
    from fairy2i_export.codes.quantizer import quantize
    from fairy2i_export.compile.result.report import ExportReport
    from fairy2i_export.compile.run import export
    from fairy2i_export.output.progress import Observer
    from fairy2i_export.rewrite.pipeline import rewrite_onnx
    from fairy2i_export.rewrite.result.report import RewriteReport

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
# loaded on first use: numpy and onnx take a while to import, and a command hears Ctrl-C before it imports anything like them
_MODULES = {
    "ExportReport": "compile.result.report",
    "Observer": "output.progress",
    "PackedLinear": "codes.layout",
    "QuantizedLinear": "codes.quantized",
    "RewriteReport": "rewrite.result.report",
    "export": "compile.run",
    "pack": "codes.layout",
    "quantize": "codes.quantizer",
    "rewrite_onnx": "rewrite.pipeline",
    "unpack": "codes.layout",
}
# modules that documentation named before they moved: scripts and launch commands hold those names
__path__.append(f"{__path__[0]}/former")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
