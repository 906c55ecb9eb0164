"""Inputs of a layer rounded to int8, one scale per token, with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LARGEST = 127


class _RoundToInt8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        unit = x.abs().amax(dim=-1, keepdim=True).to(torch.float32) / _LARGEST
        unit = torch.where(unit == 0, 1.0, unit)
        return ((x / unit).round() * unit).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def round_activations(x: Tensor) -> Tensor:
    """Every row of x [..., features] on a grid of 255 values whose ends are its largest magnitude; gradients pass unchanged."""
    rounded: Tensor = _RoundToInt8.apply(x)  # type: ignore[no-untyped-call]
    return rounded
