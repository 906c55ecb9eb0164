"""Quantization-aware training in torch: linear layers that compute with the exporter's quantizer and train latent weights.

Needs torch (``pip install '.[train]'`` in a checkout); what is named here is imported when it is asked for, because the recipe of a
run (recipe.py) is also read where torch is not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairy2i_export.codes.choices import METHODS
    from fairy2i_export.train.qat.fake_quantize import fake_quantize
    from fairy2i_export.train.qat.modules import QATLinear
    from fairy2i_export.train.qat.options import QuantizationOptions, options_of
    from fairy2i_export.train.qat.prepare import PrepareReport, config_entry, convert, load_learned, prepare
    from fairy2i_export.train.recipe import Recipe
    from fairy2i_export.train.run import TrainingResult, train

__all__ = [
    "METHODS",
    "PrepareReport",
    "QATLinear",
    "QuantizationOptions",
    "Recipe",
    "TrainingResult",
    "config_entry",
    "convert",
    "fake_quantize",
    "load_learned",
    "options_of",
    "prepare",
    "train",
]
_MODULES = {
    "METHODS": "codes.choices",
    "PrepareReport": "train.qat.prepare",
    "QATLinear": "train.qat.modules",
    "QuantizationOptions": "train.qat.options",
    "Recipe": "train.recipe",
    "TrainingResult": "train.run",
    "config_entry": "train.qat.prepare",
    "convert": "train.qat.prepare",
    "fake_quantize": "train.qat.fake_quantize",
    "load_learned": "train.qat.prepare",
    "options_of": "train.qat.options",
    "prepare": "train.qat.prepare",
    "train": "train.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fairy2i_export.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
