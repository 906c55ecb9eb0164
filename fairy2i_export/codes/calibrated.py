"""Linear layers whose codes were found by calibration (calibrate/), for the exporter to pack; no torch in here.

A calibrated layer answers as :class:`fairy2i_export.codes.quantizer.Scaled` does, so backends need not know the difference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32, F64, U8, Rows
from fairy2i_export.codes.quantizer import QuantizedLinear
from fairy2i_export.errors import CheckpointError


@dataclass(frozen=True)
class Shape:
    """Complex rows, complex columns and stages of a layer."""

    n: int
    m: int
    stages: int


@dataclass(frozen=True)
class CalibratedLinear:
    """One calibrated layer.

    Attributes:
        quantized: its codes, scales and multipliers.
        weight_sha256: of the bytes of the weight it was made of, as stored in the checkpoint or in float32, in hex.
        output_error: relative error of its outputs on the calibration text.
    """

    quantized: QuantizedLinear
    weight_sha256: str
    output_error: float

    @staticmethod
    def of(weight: npt.NDArray[Any], quantized: QuantizedLinear, output_error: float) -> CalibratedLinear:
        """A layer that was just made of ``weight`` [2n, 2m]."""
        return CalibratedLinear(quantized, weight_digest(weight), output_error)

    def scaled(self, weight: npt.NDArray[Any], name: str) -> ScaledCalibrated:
        """The layer together with its weight as the exporter reads it.

        Raises:
            CheckpointError: another weight than the one it was calibrated from.
        """
        if weight_digest(weight) != self.weight_sha256:
            raise CheckpointError(f"{name}: the checkpoint changed while it was being calibrated; start again")
        return ScaledCalibrated(self.quantized, weight)


@dataclass(frozen=True)
class ScaledCalibrated:
    """Calibrated codes in the form that backends ask for.

    Attributes:
        quantized: codes, scales and multipliers.
        weight: [2n, 2m], to measure the error against.
    """

    quantized: QuantizedLinear
    weight: npt.NDArray[Any]

    @property
    def matrix(self) -> Shape:
        return Shape(self.quantized.n, self.quantized.m, self.quantized.stages)

    @property
    def scales(self) -> F32:
        return self.quantized.scales

    @property
    def row_multiplier(self) -> F32 | None:
        return self.quantized.row_multiplier

    @property
    def col_multiplier(self) -> F32 | None:
        return self.quantized.col_multiplier

    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m], and per complex row the sums of squares of A - Q(A) and A."""
        q, part = self.quantized, slice(*rows)
        both = np.r_[part, q.n + rows[0] : q.n + rows[1]]
        multiplier = None if q.row_multiplier is None else q.row_multiplier[both]
        codes = np.ascontiguousarray(q.codes[:, :, part])
        dense = QuantizedLinear(codes, q.scales, q.profile, multiplier, q.col_multiplier).dequantize("none")
        exact = self.weight[both].astype(np.float64)
        squares = np.stack([((exact - dense) ** 2).sum(axis=1), (exact**2).sum(axis=1)], axis=1)
        return codes, squares.reshape(2, -1, 2).sum(axis=0)


def weight_digest(weight: npt.NDArray[Any]) -> str:
    """SHA-256 of a matrix in float32, a piece at a time."""
    digest = hashlib.sha256()
    step = max(1, (1 << 20) // weight.shape[1])
    for start in range(0, len(weight), step):
        digest.update(np.ascontiguousarray(weight[start : start + step], np.float32).tobytes())
    return digest.hexdigest()
