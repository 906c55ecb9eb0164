"""Linear layers whose codes were found by calibration (compile/calibrate/), for the exporter to pack; no torch in here.

A calibrated layer is :class:`~fairy2i_export.codes.quantized.Coded`, so formats need not know the difference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32, F64, U8, Rows
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.errors import CheckpointError


class FoundLinear(Protocol):
    """A layer whose codes were found before its weight comes by."""

    def scaled(self, weight: npt.NDArray[Any], name: str) -> ScaledCalibrated:
        """The layer together with its weight; a CheckpointError if it is of another one."""


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
    def n(self) -> int:
        """Complex rows."""
        return self.quantized.n

    @property
    def m(self) -> int:
        """Complex columns."""
        return self.quantized.m

    @property
    def stages(self) -> int:
        return self.quantized.stages

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
        return np.ascontiguousarray(self.quantized.codes[:, :, slice(*rows)]), self.quantized.squares(self.weight, rows)


def weight_digest(weight: npt.NDArray[Any]) -> str:
    """SHA-256 of a matrix in float32, a piece at a time."""
    digest = hashlib.sha256()
    step = max(1, (1 << 20) // weight.shape[1])
    for start in range(0, len(weight), step):
        digest.update(np.ascontiguousarray(weight[start : start + step], np.float32).tobytes())
    return digest.hexdigest()
