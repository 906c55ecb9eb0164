"""A straight-through Fairy2i linear layer in torch, written for the tests after the method's formulas.

It stands for any quantization-aware training code: tensor operations only, the latent weight as parameter, and
``w + (Q(w) - w).detach()`` in the forward pass. torch exports the whole quantizer into the ONNX graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def _keep(x: Tensor) -> Tensor:
    return x


def _axis_mean(part: Tensor, mask: Tensor) -> Tensor:
    kept = torch.where(mask, part.abs(), torch.zeros_like(part))
    mean = kept.to(torch.float64).sum() / mask.to(torch.float64).sum().clamp(min=1)
    return mean.to(torch.float32)


def quantized(weight: Tensor, stages: int, bfloat: bool, rms: bool) -> Tensor:
    """The dequantized matrix of a latent one, float32 [2n, 2m]."""
    rnd = _bf16 if bfloat else _keep
    a = rnd(weight)
    rows = torch.ones_like(a[:, :1])
    if rms:
        rows = rnd(a.to(torch.float64).square().mean(dim=1, keepdim=True).sqrt().to(torch.float32))
        a = rnd(a / rows)
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    sums = []
    for re, im in (
        (rnd(0.5 * rnd(a11 + a22)), rnd(0.5 * rnd(a21 - a12))),
        (rnd(0.5 * rnd(a11 - a22)), rnd(0.5 * rnd(a12 + a21))),
    ):
        total_re, total_im = torch.zeros_like(re), torch.zeros_like(im)
        for _ in range(stages):
            on_real = (re.abs() > im.abs()) | ((re.abs() == im.abs()) & (re.sign() != im.sign()))
            q_re = torch.where(on_real, re.sign() * rnd(_axis_mean(re, on_real)), torch.zeros_like(re))
            q_im = torch.where(on_real, torch.zeros_like(im), im.sign() * rnd(_axis_mean(im, ~on_real)))
            re, im = rnd(re - q_re), rnd(im - q_im)
            total_re, total_im = total_re + q_re, total_im + q_im
        sums.append((total_re, total_im))
    (u_re, u_im), (w_re, w_im) = sums
    top = torch.cat([w_re + u_re, w_im - u_im], dim=1)
    bottom = torch.cat([w_im + u_im, u_re - w_re], dim=1)
    return torch.cat([top, bottom]) * rows


class StraightThroughLinear(nn.Linear):
    """nn.Linear that computes with the quantized weight and passes gradients to the latent one."""

    def __init__(
        self, into: int, out: int, *, bias: bool = True, stages: int = 2, bfloat: bool = True, rms: bool = False
    ) -> None:
        super().__init__(into, out, bias=bias)
        self.quantizer = (stages, bfloat, rms)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (quantized(self.weight, *self.quantizer) - self.weight).detach()
        return nn.functional.linear(x, weight, self.bias)
