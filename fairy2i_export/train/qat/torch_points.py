"""The search of the joint quantizer in torch: the nearest of all points, for scales that are given.

The same float32 steps in the same order as custom_ops/src/quantizer/loops/joint.h, so that codes are equal to the bit.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor


def nearest_codes(re: Tensor, im: Tensor, scales: Tensor) -> Tensor:
    """Codes of the nearest points.

    Args:
        re: real parts of the entries of U or of W, any shape and floating type.
        im: imaginary parts.
        scales: float32 [stages, 2 (re, im)]; read here, so on a device this waits for them, unless it is being compiled.

    Returns:
        uint8 [stages, ...].
    """
    re, im = re.to(torch.float32), im.to(torch.float32)
    found = _nearest(re.abs(), im.abs(), scales.to(torch.float32))
    stages = len(scales)
    planes = []
    for stage in range(stages):
        code = found >> (2 * (stages - 1 - stage)) & 3
        # reflected back: 0 <-> 2 where the real part is negative, 1 <-> 3 where the imaginary part is
        negative = torch.where(code & 1 == 1, im < 0, re < 0)
        planes.append((code ^ (negative.to(torch.int16) << 1)).to(torch.uint8))
    return torch.stack(planes)


def _nearest(x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """Combinations of codes, int16, of the points nearest to (x, y) in the first quadrant."""
    if torch.compiler.is_compiling():  # one loop over the points inside of the kernel
        point_re, point_im = _points_unread(scales)
        across, along = x[..., None] - point_re, y[..., None] - point_im
        return (across * across + along * along).argmin(-1).to(torch.int16)  # of equal distances the first
    least = torch.full_like(x, float("inf"))
    found = torch.zeros(x.shape, dtype=torch.int16, device=x.device)
    for combination, at_re, at_im in _points(tuple(map(tuple, scales.tolist()))):
        beside, above = x - at_re, y - at_im
        distance = beside * beside + above * above
        nearer = distance < least
        least = torch.where(nearer, distance, least)
        found = torch.where(nearer, combination, found)
    return found


@lru_cache(maxsize=1024)
def _points(scales: tuple[tuple[float, float], ...]) -> list[tuple[int, float, float]]:
    """(combination, re, im) of the points in the first quadrant, of equal ones the lowest combination."""
    found: dict[tuple[float, float], int] = {}
    for combination, codes in enumerate(product(range(4), repeat=len(scales))):
        at = [np.float32(0), np.float32(0)]
        for code, pair in zip(codes, scales, strict=True):
            scale = np.float32(pair[code & 1])
            at[code & 1] = np.float32(at[code & 1] + (-scale if code & 2 else scale))
        if at[0] >= 0 and at[1] >= 0:
            found.setdefault((float(at[0]), float(at[1])), combination)
    return [(combination, *point) for point, combination in found.items()]


def _points_unread(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Re and im of all combinations, without looking at scales [stages, 2]; those outside of the first quadrant are at infinity."""
    stages = len(scales)
    combination = torch.arange(4**stages, device=scales.device)
    at = [torch.zeros(4**stages, dtype=torch.float32, device=scales.device)] * 2
    for stage, pair in enumerate(scales.unbind()):
        code = combination >> (2 * (stages - 1 - stage)) & 3
        sign = 1.0 - (code & 2).to(torch.float32)
        at = [part + torch.where(code & 1 == axis, sign * pair[axis], 0.0) for axis, part in enumerate(at)]
    inside = (at[0] >= 0) & (at[1] >= 0)
    return torch.where(inside, at[0], torch.inf), torch.where(inside, at[1], torch.inf)
