"""The linear layer that trains a latent weight and computes with its quantized form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairy2i_export.train.qat import native_quantizer
from fairy2i_export.train.qat.activations import round_activations
from fairy2i_export.train.qat.cache import WeightCache, is_cached
from fairy2i_export.train.qat.devices import settle
from fairy2i_export.train.qat.fake_quantize import dequantize, fake_quantize
from fairy2i_export.train.qat.options import QuantizationOptions


class QATLinear(nn.Linear):
    """``nn.Linear`` whose forward pass uses the dequantized weight: ``F.linear(x, fake_quantize(weight), bias)``.

    The parameters are those of ``nn.Linear``, under the same names: ``weight`` [out, in] is the latent weight.

    Attributes:
        unit: learning rates of the latent weight and of row multipliers are multiplied by it; not part of the state.

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
        self.unit = 1.0
        self._cache = WeightCache()
        rows = torch.ones(out_features, device=device) if options.row_multiplier == "learned" else None
        scales = torch.ones(options.stages, 2, 2, device=device) if options.learned_scales else None
        columns = torch.ones(in_features, device=device) if options.col_multiplier == "learned" else None
        self.row_multiplier = None if rows is None else nn.Parameter(rows)
        self.col_multiplier = None if columns is None else nn.Parameter(columns)
        self.scales = None if scales is None else nn.Parameter(scales)
        self.reset_learned()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, options: QuantizationOptions, name: str = "weight", *, fit: bool = True
    ) -> QATLinear:
        """A quantizing layer around the very parameters of ``linear``; without ``fit`` learned ones have no values yet."""
        new = cls(
            linear.in_features, linear.out_features, linear.bias is not None, options=options, device="meta", name=name
        )
        new.weight, new.bias = linear.weight, linear.bias
        for learned, parameter in new.learned().items():
            setattr(new, learned, nn.Parameter(torch.empty_like(parameter, device=linear.weight.device)))
        if fit:
            new.reset_learned()
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.options.activation_bits is not None:
            input = round_activations(input)
        return nn.functional.linear(input, self.quantized_weight(), self.bias)

    def quantized_weight(self) -> Tensor:
        """The dequantized weight [out, in], through which gradients reach the parameters.

        Under autocast to bfloat16 it is bfloat16, as ``nn.functional.linear`` would make it.

        Raises:
            WeightError: the latent weight is not finite, or a shard of the whole.
        """
        weight, rows, scales, columns = self.weight, self.row_multiplier, self.scales, self.col_multiplier
        made, dtype = None, torch.bfloat16 if _casts_to_bfloat16(weight.device.type) else weight.dtype
        if self.options.cache and is_cached(weight):
            made = self._cache.get(weight, self.options, rows, scales, dtype, self.name, columns)
        learned: Any = {"rows": rows, "scales": scales, "columns": columns}
        return fake_quantize(weight, self.options, **learned, dtype=dtype, made=made, name=self.name)

    def dequantized_weight(self) -> Tensor:
        """The matrix [out, in] that the forward pass multiplies by, in the weight's dtype: detached, a tensor of its own."""
        learned: Any = {"rows": self.row_multiplier, "scales": self.scales, "columns": self.col_multiplier}
        found = dequantize(self.weight.detach(), self.options, **learned, name=self.name).detach()
        settle()
        return found

    def to_linear(self) -> nn.Linear:
        """A plain ``nn.Linear`` with the dequantized weight, and the bias."""
        new = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype)
        new.weight, new.bias = nn.Parameter(self.dequantized_weight(), self.weight.requires_grad), self.bias
        return new.train(self.training)

    def learned(self) -> dict[str, nn.Parameter]:
        """The learned scales and multipliers that there are, by name."""
        found = {"row_multiplier": self.row_multiplier, "scales": self.scales, "col_multiplier": self.col_multiplier}
        return {name: parameter for name, parameter in found.items() if parameter is not None}

    def reset_learned(self) -> None:
        """Set learned scales and row multipliers to what the quantizer computes for the weights as they are now, columns' to 1."""
        if self.weight.device.type != "meta" and self.col_multiplier is not None:
            nn.init.ones_(self.col_multiplier)
        if self.weight.device.type == "meta" or (self.scales is None and self.row_multiplier is None):
            return
        rows, scales = native_quantizer.find_parameters(self.weight.detach().cpu(), self.options)
        with torch.no_grad():
            if self.row_multiplier is not None:
                self.row_multiplier.copy_(rows)
            if self.scales is not None:
                self.scales.copy_(scales)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Checkpoints without learned scales and multipliers, such as the reference's, load: they start from the weights."""
        missing: list[str] = args[2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        learned = {f"{prefix}{name}" for name in self.learned()} & set(missing)
        if learned and f"{prefix}weight" not in missing:
            missing[:] = [key for key in missing if key not in learned]
            self.reset_learned()

    def extra_repr(self) -> str:
        stages = f", stages={self.options.stages}" if self.options.method == "fairy2i" else ""
        return f"{super().extra_repr()}, method={self.options.method}{stages}"


def _casts_to_bfloat16(device: str) -> bool:
    """Whether autocast makes matrices of a kind of device bfloat16 now."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):  # no autocast: meta
        return False
    return torch.get_autocast_dtype(device) == torch.bfloat16
