"""Quantization-aware training in torch: linear layers that compute with the exporter's quantizer and train latent weights.

Needs torch (``pip install 'fairy2i-export[train]'``). Nothing outside this package imports it at module level.
"""

from __future__ import annotations

from fairy2i_export.train.fake_quantize import fake_quantize
from fairy2i_export.train.options import METHODS, QuantizationOptions, options_of
from fairy2i_export.train.prepare import PrepareReport, config_entry, convert, prepare
from fairy2i_export.train.qat_modules import QATLinear
from fairy2i_export.train.run import TrainingResult, train
from fairy2i_export.training_recipe import Recipe

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
    "options_of",
    "prepare",
    "train",
]
