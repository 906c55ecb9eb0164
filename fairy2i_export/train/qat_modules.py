"""The linear layer that trains a latent weight and computes with its quantized form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairy2i_export.train.fake_quantize import dequantized, fake_quantize
from fairy2i_export.train.options import QuantizationOptions


class QATLinear(nn.Linear):
    """``nn.Linear`` whose forward pass uses the dequantized weight: ``F.linear(x, fake_quantize(weight), bias)``.

    The parameters are those of ``nn.Linear``, under the same names: ``weight`` [out, in] is the latent weight.

    Args:
        in_features: even, unless the method is a baseline.
        out_features: likewise.
        bias: as ``nn.Linear``.
        options: how to quantize.
        device: as ``nn.Linear``.
        dtype: likewise.
        name: how to call the layer in error messages.

    Raises:
        ValueError: an odd dimension.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        options: QuantizationOptions | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        name: str = "weight",
    ) -> None:
        options = options or QuantizationOptions()
        if options.method == "fairy2i" and (in_features % 2 or out_features % 2):
            raise ValueError(
                f"{name}: expected even dimensions (a complex entry is two real ones), got {out_features} x {in_features}; "
                "keep this layer an nn.Linear"
            )
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.options = options
        self.name = name

    @classmethod
    def from_linear(cls, linear: nn.Linear, options: QuantizationOptions, name: str = "weight") -> QATLinear:
        """A quantizing layer around the very parameters of ``linear``."""
        new = cls(
            linear.in_features, linear.out_features, linear.bias is not None, options=options, device="meta", name=name
        )
        new.weight, new.bias = linear.weight, linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, fake_quantize(self.weight, self.options, self.name), self.bias)

    def dequantized_weight(self) -> Tensor:
        """The matrix [out, in] that the forward pass multiplies by, detached, a tensor of its own."""
        return dequantized(self.weight, self.options, self.name)

    def extra_repr(self) -> str:
        stages = f", stages={self.options.stages}" if self.options.method == "fairy2i" else ""
        return f"{super().extra_repr()}, method={self.options.method}{stages}"

    def to_linear(self) -> nn.Linear:
        """A plain ``nn.Linear`` with the dequantized weight, and the bias."""
        new = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype)
        new.weight, new.bias = nn.Parameter(self.dequantized_weight(), self.weight.requires_grad), self.bias
        return new.train(self.training)
