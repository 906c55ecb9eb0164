"""The paper's baselines: real binary and real ternary weights, one scale per matrix.

Both follow the published training code: means are rounded to the type of the arithmetic (bfloat16 in the profile
bf16-reference), and what is learned are the latent weights alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _arithmetic(weight: Tensor, profile: str) -> Tensor:
    return weight.to(torch.bfloat16 if profile == "bf16-reference" else torch.float32)


def binary(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """BitNet's 1 bit (Wang et al. 2023): +s where a weight is above the mean, else -s, with s the mean magnitude.

    Returns:
        The matrix [out, in] in the weight's dtype, and s, which is not finite if the weight is not.
    """
    w = _arithmetic(weight, profile)
    scale, mean = w.abs().mean(), w.mean()
    return torch.where(w - mean > 0, scale, -scale).to(weight.dtype), scale


def ternary(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """b1.58 (Ma et al. 2024): weights over their mean magnitude, rounded to -1, 0 or 1, times it.

    Returns:
        The matrix [out, in] in the weight's dtype, and the mean magnitude, which is not finite if the weight is not.
    """
    w = _arithmetic(weight, profile)
    scale = w.abs().mean()
    return (torch.clamp(torch.round(w / (scale + 1e-5)), -1, 1) * scale).to(weight.dtype), scale
