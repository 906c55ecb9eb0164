"""From a latent weight to the dequantized one that the forward pass uses, with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairy2i_export.errors import WeightError
from fairy2i_export.train import baselines, torch_quantizer
from fairy2i_export.train.options import QuantizationOptions


class _StraightThrough(torch.autograd.Function):
    """Gives ``dequantized`` in the forward pass, and its gradient to ``weight`` unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dequantized: Tensor) -> Tensor:
        return dequantized

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def dequantized(weight: Tensor, options: QuantizationOptions, name: str = "weight") -> Tensor:
    """The matrix that the model computes with, in the weight's dtype, without gradient."""
    with torch.no_grad():
        if options.method == "binary":
            return baselines.binary(weight, options.profile)
        if options.method == "ternary":
            return baselines.ternary(weight, options.profile)
        rows = torch_quantizer.row_rms(weight, options.profile) if options.row_multiplier == "rms" else None
        dense, scales = torch_quantizer.quantize_parts(weight, options.stages, options.profile, rows)
        if weight.device.type == "cpu" and not torch.compiler.is_compiling() and not scales.isfinite().all():
            raise WeightError(
                f"{name}: the latent weight holds values that are not finite: training diverged; "
                "go back to an earlier checkpoint, with a lower learning rate or gradient clipping"
            )
        return dense


def fake_quantize(weight: Tensor, options: QuantizationOptions, name: str = "weight") -> Tensor:
    """The dequantized weight [out, in] of a latent one; the gradient of the former becomes that of the latter, bit for bit.

    Raises:
        WeightError: values that are not finite, in tensors on the CPU.
    """
    result: Tensor = _StraightThrough.apply(weight, dequantized(weight, options, name))
    return result
