"""The Fairy2i quantizer: a real matrix in, codes in {1, i, -1, -i} and a handful of scales out.

A real linear layer ``y = A x`` with ``A`` of shape [2n, 2m] is the widely-linear complex map ``y = U x + W conj(x)`` where
the complex vectors are made of contiguous halves, ``x = x[:m] + i x[m:]`` (Fairy2i, arXiv 2512.02901, section 3). U and W are
quantized each on its own. ``greedy`` is the published way, stage by stage: every entry of the residual goes to the nearest of
the four axis directions, each axis gets the mean magnitude of its entries as scale, and the next stage works on what is left
(strategies/greedy.py). ``joint`` chooses the codes of all stages together and fits the scales to them: the same format with a
smaller error from two stages on (strategies/joint.py).

Two numeric profiles exist. ``bf16-reference`` rounds to bfloat16 after every step exactly where the published training code
does, so that codes and scales are those the model was trained with. ``fp32`` runs the same formulas in float32.

This module is the only quantizer of the project: export, training and verification all call it. What is done to every entry
(split, codes, residuals, sums) is C, custom_ops/src/quantizer/, and exists only there; what is done once per matrix
(checks, scales) is here. A scale needs sums over the whole matrix, so finding scales takes passes over all rows; sums are
made and added in a fixed order, so results depend neither on threads nor on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import MAX_STAGES, ROW_MULTIPLIERS, Profile, RowMultiplier
from fairy2i_export.codes.native import F32, F64, U8, LatentMatrix, Rows, each, row_blocks
from fairy2i_export.codes.profiles import Rounding, rounding_of
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.strategies import GREEDY, QUANTIZERS, STRATEGIES
from fairy2i_export.codes.weight_checks import as_array, check_finite, check_multiplier, check_shape, looks_dequantized
from fairy2i_export.errors import OptionError, WeightError

# goes up when the same weights and options give other codes or scales: what was made before cannot be continued
QUANTIZER_REVISION = 1


@dataclass(frozen=True)
class Scaled:
    """A matrix whose scales are found: the codes of any rows can be had from it.

    Attributes:
        matrix: the latent weights, divided by the multipliers if there are any.
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        row_multiplier: float32 [2n] or None.
        col_multiplier: float32 [2m] or None.
    """

    matrix: LatentMatrix
    scales: F32
    row_multiplier: F32 | None = None
    col_multiplier: F32 | None = None

    @property
    def n(self) -> int:
        """Complex rows."""
        return self.matrix.n

    @property
    def m(self) -> int:
        """Complex columns."""
        return self.matrix.m

    @property
    def stages(self) -> int:
        return self.matrix.stages

    def codes(self, rows: Rows) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m], and per complex row the sums of squares of A - Q(A) and A."""
        return self.matrix.codes(rows, self.scales)


def quantize(
    weight: npt.ArrayLike,
    stages: int = 2,
    profile: Profile = "bf16-reference",
    *,
    quantizer: str = GREEDY.name,
    row_multiplier: RowMultiplier | F32 = "none",
    col_multiplier: F32 | None = None,
    scales: F32 | None = None,
    name: str = "weight",
) -> QuantizedLinear:
    """Quantize the latent weight of one linear layer.

    Args:
        weight: real matrix [2n, 2m] (rows are output features), float32, float16, float64 or bfloat16, finite.
        stages: residual stages, 1 to 4; stages bits per real weight (W1 = 1, W2 = 2).
        profile: ``bf16-reference`` or ``fp32``.
        quantizer: ``greedy``, the published method, or ``joint``, which leaves a smaller error.
        row_multiplier: ``none`` is the published method. ``rms`` first divides every real row by its root mean square and
            keeps it as a multiplier per output row, for checkpoints that were trained that way. An array float32 [2n]
            (learned multipliers) is used as it is.
        col_multiplier: float32 [2m], factors per input column that the matrix is divided by after the rows, or None.
        scales: float32 [stages, 2 (U, W), 2 (re, im)] to use as they are (learned scales) instead of finding them, or None.
        name: how to call the tensor in error messages.

    Returns:
        Codes, scales and multipliers; see :class:`QuantizedLinear`.

    Raises:
        OptionError: unknown profile, stages, quantizer or row_multiplier.
        WeightError: not a matrix, odd or empty dimensions, non-finite values, a matrix that is already dequantized, or
            multipliers or scales of another shape, zero (multipliers) or not finite.
    """
    scaled = find_scales(
        weight,
        stages,
        profile,
        quantizer=quantizer,
        row_multiplier=row_multiplier,
        col_multiplier=col_multiplier,
        scales=scales,
        name=name,
    )
    codes, _ = scaled.codes((0, scaled.matrix.n))
    return QuantizedLinear(codes, scaled.scales, profile, scaled.row_multiplier, scaled.col_multiplier)


def find_scales(
    weight: npt.ArrayLike,
    stages: int,
    profile: Profile,
    *,
    quantizer: str = GREEDY.name,
    row_multiplier: RowMultiplier | F32 = "none",
    col_multiplier: F32 | None = None,
    scales: F32 | None = None,
    name: str = "weight",
    pool: Executor | None = None,
) -> Scaled:
    """The passes over a whole matrix that :func:`quantize` begins with; arguments and errors as there.

    Args:
        weight: as for :func:`quantize`.
        stages: as there.
        profile: as there.
        quantizer: as there.
        row_multiplier: as there.
        col_multiplier: as there.
        scales: as there.
        name: as there.
        pool: threads to share the rows among.
    """
    rnd = rounding_of(profile)
    if isinstance(stages, bool) or stages not in range(1, MAX_STAGES + 1):
        raise OptionError(f"stages must be an integer from 1 to {MAX_STAGES}, got {stages!r}")
    if quantizer not in QUANTIZERS:
        raise OptionError(f"unknown quantizer {quantizer!r}: expected one of {', '.join(QUANTIZERS)}")
    array = as_array(weight, name)
    check_shape(array, name)
    matrix = LatentMatrix(array, stages, profile)
    rows = _rows(matrix, row_multiplier, rnd, name, pool)
    if rows is not None:
        matrix.divide_rows(rows)
    if col_multiplier is not None:
        col_multiplier = check_multiplier(col_multiplier, (2 * matrix.m,), f"{name}: column multiplier")
        matrix.divide_columns(col_multiplier)

    def check(sums: F64) -> None:
        check_finite(sums, array, name)
        if looks_dequantized(array):
            raise WeightError(
                f"{name}: this matrix is already a dequantized Fairy2i weight (its entries take only a few distinct "
                "values). Quantizing it again would change it; export the latent weights the model was trained with"
            )

    strategy = STRATEGIES[quantizer]
    if scales is None:
        scales = strategy.scales(matrix, rnd, pool, check, None)
    else:
        scales = check_multiplier(scales, (stages, 2, 2), f"{name}: scales", zero=True)
        check(np.concatenate(each(matrix.squares, row_blocks(matrix.n, matrix.m, 1), pool)))
        strategy.choose(matrix)
    return Scaled(matrix, scales, rows, col_multiplier)


def _rows(matrix: LatentMatrix, wanted: RowMultiplier | F32, rnd: Rounding, name: str, pool: Executor | None) -> F32 | None:
    """The row multiplier, float32 [2n], that is asked for."""
    if not isinstance(wanted, str):
        return check_multiplier(wanted, (2 * matrix.n,), f"{name}: row multiplier")
    if wanted not in ROW_MULTIPLIERS:
        raise OptionError(f"unknown row_multiplier {wanted!r}: expected one of {', '.join(ROW_MULTIPLIERS)}")
    if wanted == "none":
        return None
    return rms_of_rows(matrix, rnd, pool, lambda squares: check_finite(squares, matrix.array, name))


def rms_of_rows(
    matrix: LatentMatrix,
    rnd: Rounding,
    pool: Executor | None,
    check: Callable[[F64], None],
    blocks: Sequence[Rows] | None = None,
) -> F32:
    """Root mean square of every real row, float32 [2n], rounded; arguments as those of :data:`FindScales`."""
    blocks = row_blocks(matrix.n, matrix.m, 1) if blocks is None else blocks
    squares: F64 = np.concatenate(each(matrix.squares, blocks, pool))
    check(squares)
    rms: F32 = rnd(np.sqrt(squares.T.reshape(-1) / (2 * matrix.m)).astype(np.float32))
    rms[rms == 0] = 1  # a row of zeros: dividing by 1 changes nothing
    return rms
