"""Gradients of learned multipliers r and c and scales s of W = diag(r) Q(A / (r c); s) diag(c).

dL/ds sums the gradient of every entry that uses a scale, with the sign of its code, over sqrt(n m) (as LSQ does, so that
a few scales do not outweigh all weights when gradients are clipped). dL/dr and dL/dc follow from Q(A / (r c)) =
A / (r c) + E with E constant: W = A + diag(r) E diag(c).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairy2i_export.train.qat import torch_quantizer
from fairy2i_export.train.qat.options import QuantizationOptions


def gradients_of_learned(
    weight: Tensor,
    dense: Tensor,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    grad: Tensor,
    codes: Tensor | None,
    options: QuantizationOptions,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of row multipliers, scales and column multipliers.

    Args:
        weight: latent weight [2n, 2m].
        dense: the matrix that it stands for, [2n, 2m].
        rows: row multipliers [2n], or None.
        scales: scales [stages, 2 (U, W), 2 (re, im)], or None.
        columns: column multipliers [2m], or None.
        grad: gradient of ``dense``.
        codes: of the weight, uint8 [stages, 2, n, m]; None: they are found here if they are needed.
        options: how it is quantized.
        wanted: which of the three.
    """
    for_rows = for_scales = for_columns = None
    if (rows is not None and wanted[0]) or (columns is not None and wanted[2]):
        pull = (dense.to(torch.float32) - weight.to(torch.float32)) * grad  # of every rounding error
        if rows is not None and wanted[0]:
            for_rows = (pull.sum(dim=1) / rows).to(rows.dtype)
        if columns is not None and wanted[2]:
            for_columns = (pull.sum(dim=0) / columns).to(columns.dtype)
    if scales is not None and wanted[1]:
        if codes is None:
            codes = torch_quantizer.codes_of(weight, options, rows, scales, columns)
        for_scales = _gradient_of_scales(codes, rows, scales, columns, grad).to(scales.dtype)
    return for_rows, for_scales, for_columns


def _gradient_of_scales(codes: Tensor, rows: Tensor | None, scales: Tensor, columns: Tensor | None, grad: Tensor) -> Tensor:
    """float32 [stages, 2 (U, W), 2 (re, im)]."""
    g = grad.to(torch.float32) if rows is None else grad.to(torch.float32) * rows[:, None]
    g = g if columns is None else g * columns
    n, m = g.shape[0] // 2, g.shape[1] // 2
    g11, g12, g21, g22 = g[:n, :m], g[:n, m:], g[n:, :m], g[n:, m:]
    # the transpose of the map from (U, W) to the real matrix
    parts = ((g11 + g22, g21 - g12), (g11 - g22, g12 + g21))
    sums = [
        torch.where(code == axis, part, 0).sum() - torch.where(code == axis + 2, part, 0).sum()
        for planes in codes
        for code, of_matrix in zip(planes, parts, strict=True)
        for axis, part in enumerate(of_matrix)
    ]
    return torch.stack(sums).reshape(scales.shape).div(float(n * m) ** 0.5)
