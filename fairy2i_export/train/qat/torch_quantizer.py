"""The Fairy2i quantizer in torch, for devices that the C library does not reach and for graphs that are traced.

The formulas and their rounding are those of custom_ops/src/quantizer/, and tests hold the two equal to the bit. In the
profile bf16-reference tensors *are* bfloat16, so that torch rounds after every step by itself; magnitudes are compared
instead of angles; and matrices of a quarter of the weight's size (one part of U or W) are all that is allocated beside the
result, four of them at a time and the masks.

In a graph that is exported bfloat16 values are kept in float32 and rounded by casts, because few runtimes calculate in
bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairy2i_export.codes.profiles import SCALE_FLOOR
from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.train.qat.options import QuantizationOptions
from fairy2i_export.train.qat.torch_points import nearest_codes

Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Arithmetic:
    """The type that values are kept in, and how results are rounded beyond it."""

    dtype: torch.dtype
    rnd: Rounding
    traced: bool

    @staticmethod
    def of(profile: str) -> _Arithmetic:
        traced = torch.compiler.is_exporting()
        if profile == "fp32":
            return _Arithmetic(torch.float32, _keep, traced)
        return _Arithmetic(torch.float32, _through_bf16, traced) if traced else _Arithmetic(torch.bfloat16, _keep, traced)


def _keep(x: Tensor) -> Tensor:
    return x


def _through_bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def row_rms(weight: Tensor, profile: str) -> Tensor:
    """Root mean square of every real row, float32 [2n], rounded as the profile rounds; 1 for rows of zeros."""
    a = weight.to(torch.bfloat16) if profile == "bf16-reference" else weight
    rms = (_double(a).square().sum(dim=1) / a.shape[1]).sqrt().to(torch.float32)
    if profile == "bf16-reference":
        rms = _through_bf16(rms)
    return torch.where(rms == 0, 1.0, rms)


def _double(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.device.type != "mps" else torch.float32)  # MPS has no float64


def _latent_parts(
    weight: Tensor, profile: str, rows: Tensor | None, columns: Tensor | None
) -> tuple[_Arithmetic, list[tuple[Tensor, Tensor]]]:
    """(re, im) of U and of W, [n, m] each, of a real matrix [2n, 2m] divided by ``rows`` [2n], then by ``columns`` [2m]."""
    how = _Arithmetic.of(profile)
    rnd = how.rnd
    a = rnd(weight.to(how.dtype))
    if rows is not None:
        a = rnd((a.to(torch.float32) / rows[:, None]).to(how.dtype))
    if columns is not None:
        a = rnd((a.to(torch.float32) / columns).to(how.dtype))
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    u = rnd(0.5 * rnd(a11 + a22)), rnd(0.5 * rnd(a21 - a12))
    w = rnd(0.5 * rnd(a11 - a22)), rnd(0.5 * rnd(a12 + a21))
    return how, [u, w]


def _on_real_axis(re: Tensor, im: Tensor) -> Tensor:
    """Which entries go to the real axis: the larger magnitude wins; on a border those with opposite signs, and zeros."""
    x, y = re.abs(), im.abs()
    opposite = _negative(re) != _negative(im)
    return (x > y) | ((x == y) & (opposite | (x == 0)))


def _minus_on_real(re: Tensor, im: Tensor) -> Tensor:
    """Which entries become -1 rather than 1 if they go to the real axis: a zero only if both its parts are negative zeros."""
    return _negative(re) & ((re != 0) | _negative(im))


def _negative(x: Tensor) -> Tensor:
    # ONNX has no signbit; the difference, the sign of zeros, matters only for an entry that is zero in both parts
    return x < 0 if torch.compiler.is_exporting() else torch.signbit(x)


def _axis_scale(part: Tensor, mask: Tensor, how: _Arithmetic) -> Tensor:
    """Mean magnitude of the entries in ``mask``, as a float32 scalar tensor."""
    kept = torch.where(mask, part.abs(), torch.zeros((), dtype=part.dtype, device=part.device))
    kind = torch.float64 if part.device.type != "mps" else torch.float32
    mean = (kept.sum(dtype=kind) / mask.sum().clamp(min=1).to(kind)).to(torch.float32)
    floor = torch.full((), SCALE_FLOOR, dtype=torch.float32, device=part.device)
    if how.rnd is _through_bf16 or how.dtype == torch.bfloat16:
        mean, floor = _through_bf16(mean), _through_bf16(floor)
    return torch.maximum(mean, floor)


def quantize(
    weight: Tensor,
    options: QuantizationOptions,
    rows: Tensor | None = None,
    scales: Tensor | None = None,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Dequantized weight and scales.

    Args:
        weight: latent weight [2n, 2m], any floating dtype and device.
        options: stages, profile and quantizer; one that chooses jointly needs scales.
        rows: row multipliers float32 [2n]: the weight is divided by them first, and the result multiplied at last.
        scales: float32 [stages, 2 (U, W), 2 (re, im)] to use, or None to compute them.
        columns: column multipliers float32 [2m], likewise, after the rows.

    Returns:
        The matrix [2n, 2m], float32 if there are multipliers and in the type of the arithmetic if not, and the scales,
        float32 [stages, 2, 2].
    """
    how, parts = _latent_parts(weight, options.profile, rows, columns)
    sums, used = [], []
    for matrix, (re, im) in enumerate(parts):
        if scales is not None and STRATEGIES[options.quantizer].jointly:
            total, found = _sum_of(nearest_codes(re, im, scales[:, matrix]), scales[:, matrix], how), scales[:, matrix]
        else:
            total, found = _stages(re, im, options.stages, how, None if scales is None else scales[:, matrix])
        sums.append(total)
        used.append(found)
    (u_re, u_im), (w_re, w_im) = sums
    rnd = how.rnd
    top = torch.cat([rnd(w_re + u_re), rnd(w_im - u_im)], dim=1)
    bottom = torch.cat([rnd(w_im + u_im), rnd(u_re - w_re)], dim=1)
    dense = torch.cat([top, bottom])
    if rows is not None:
        dense = dense.to(torch.float32) * rows[:, None]
    if columns is not None:
        dense = dense.to(torch.float32) * columns
    return dense, torch.stack(used, dim=1)


def _stages(
    re: Tensor, im: Tensor, stages: int, how: _Arithmetic, scales: Tensor | None
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The sum of all stages of U or W, real and imaginary part, and the scales [stages, 2]."""
    zero = torch.zeros((), dtype=torch.float32, device=re.device)
    rnd, found = how.rnd, []
    total_re = total_im = zero.to(how.dtype)
    for stage in range(stages):
        real = _on_real_axis(re, im)
        if scales is None:
            s_re, s_im = _axis_scale(re, real, how), _axis_scale(im, ~real, how)
        else:
            s_re, s_im = scales[stage].to(torch.float32).unbind()
        found.append(torch.stack([s_re, s_im]))
        q_re = torch.where(real, torch.where(_minus_on_real(re, im), -s_re, s_re), zero)
        q_im = torch.where(real, zero, torch.where(_negative(im), -s_im, s_im))
        if stage + 1 < stages:
            re, im = rnd((re - q_re).to(how.dtype)), rnd((im - q_im).to(how.dtype))
        total_re, total_im = rnd((total_re + q_re).to(how.dtype)), rnd((total_im + q_im).to(how.dtype))
    return (total_re, total_im), torch.stack(found)


def _sum_of(codes: Tensor, scales: Tensor, how: _Arithmetic) -> tuple[Tensor, Tensor]:
    """What codes [stages, n, m] with scales [stages, 2] stand for, real and imaginary part."""
    total = [torch.zeros((), dtype=how.dtype, device=codes.device)] * 2
    for code, pair in zip(codes, scales.to(torch.float32), strict=True):
        sign = 1.0 - (code & 2).to(torch.float32)
        for axis in range(2):
            q = torch.where(code & 1 == axis, sign * pair[axis], 0.0)
            total[axis] = how.rnd((total[axis] + q).to(how.dtype))
    return total[0], total[1]


def codes_of(
    weight: Tensor, options: QuantizationOptions, rows: Tensor | None, scales: Tensor, columns: Tensor | None = None
) -> Tensor:
    """Codes uint8 [stages, 2 (U, W), n, m] that given scales lead to."""
    how, parts = _latent_parts(weight.detach(), options.profile, rows, columns)
    if STRATEGIES[options.quantizer].jointly:
        return torch.stack([nearest_codes(*part, scales[:, matrix]) for matrix, part in enumerate(parts)], dim=1)
    planes = []
    for matrix, (re, im) in enumerate(parts):
        for stage in range(options.stages):
            real = _on_real_axis(re, im)
            minus = torch.where(real, _minus_on_real(re, im), _negative(im))
            planes.append(2 * minus.to(torch.uint8) + (~real).to(torch.uint8))
            s_re, s_im = scales[stage, matrix].to(torch.float32).unbind()
            sign = 1.0 - 2.0 * minus
            re = how.rnd((re - torch.where(real, sign * s_re, 0.0)).to(how.dtype))
            im = how.rnd((im - torch.where(real, 0.0, sign * s_im)).to(how.dtype))
    return torch.stack([torch.stack(planes[t :: options.stages]) for t in range(options.stages)])
