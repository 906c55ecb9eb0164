"""The numbers that "dot" computes with, against an oracle of their own: int8 activations, int8 weights on a chosen grid."""

from __future__ import annotations

import numpy as np
import pytest
from test_kernels import linear, random_layer

from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_runtime import core

DOT = [k.isa for k in core.kernels() if k.available and k.family == "dot"]
UNITS = np.array([1, 1j, -1, -1j])  # by code
# byte planes of a layer, each two of {stage, matrix}; docs/format.md
PLANES = {
    1: [((0, 0), (0, 1))],
    2: [((0, 0), (1, 0)), ((0, 1), (1, 1))],
    3: [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((2, 0), (2, 1))],
    4: [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((2, 0), (3, 0)), ((2, 1), (3, 1))],
}


def rounded_values(scales: np.ndarray) -> list[tuple[list[float], list[float]]]:
    """What is rounded to whole grid steps, and how often codes name it, for each plane and axis."""
    found = []
    for (a, matrix_a), (b, matrix_b) in PLANES[len(scales)]:
        for axis in range(2):
            first, second = float(scales[a, matrix_a, axis]), float(scales[b, matrix_b, axis])
            if matrix_a == matrix_b:
                found.append(([first, second, first + second, first - second], [4, 4, 2, 2]))
            else:
                found.append(([first, second], [8, 8]))
    return found


def error_of(scales: np.ndarray, grid: float) -> float:
    """Sum of squares of what rounding to a grid leaves, as often as codes name the values."""
    total = 0.0
    for values, counts in rounded_values(scales):
        steps = np.array(values) / grid
        total += float(np.sum(counts * ((steps - np.rint(steps)) * grid) ** 2))
    return total


def steps_of(scales: np.ndarray) -> int:
    sums = np.abs(scales.astype(np.float64)).sum(axis=(0, 1)).max()
    most = 125 if len(scales) > 2 else 126
    return min(range(most, most - 32, -1), key=lambda steps: error_of(scales, sums / steps))


def grid_of(scales: np.ndarray) -> np.float32:
    return np.float32(np.abs(scales.astype(np.float64)).sum(axis=(0, 1)).max() / steps_of(scales))


def weights_of(q: QuantizedLinear, grid: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """U and W in grid steps, whole complex numbers [n, m]."""
    per_step = np.float32(1) / grid
    totals = [np.zeros((q.n, q.m), complex), np.zeros((q.n, q.m), complex)]
    for planes in PLANES[len(q.scales)]:
        parts = []
        for stage, matrix in planes:
            unit = UNITS[q.codes[stage, matrix]]
            s_re, s_im = q.scales[stage, matrix]
            parts.append((matrix, unit.real.astype(np.float32) * s_re, unit.imag.astype(np.float32) * s_im))
        if parts[0][0] == parts[1][0]:
            parts = [(parts[0][0], parts[0][1] + parts[1][1], parts[0][2] + parts[1][2])]
        for matrix, re, im in parts:
            totals[matrix] += np.rint(re * per_step) + 1j * np.rint(im * per_step)
    return totals[0], totals[1]


def dot_oracle(x: np.ndarray, q: QuantizedLinear) -> np.ndarray:
    """One K-block, at most 32 complex columns."""
    grid = grid_of(q.scales)
    u, w = weights_of(q, grid)
    out = []
    for row in x:
        largest = np.abs(row).max()
        whole = np.rint(row * (np.float32(127) / largest))
        z = whole[: q.m] + 1j * whole[q.m :]
        y = u @ z + w @ z.conj()
        unit = largest / np.float32(127) * grid
        out.append(unit * np.concatenate([y.real, y.imag]).astype(np.float32))
    return np.array(out, np.float32)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("isa", DOT)
def test_dot_equals_the_oracle_to_the_bit(isa: str, stages: int) -> None:
    rng = np.random.default_rng(stages)
    for n, m, rows in [(1, 1, 1), (33, 32, 1), (40, 31, 3), (65, 17, 70), (32, 32, 9)]:
        q = random_layer(rng, n, m, stages)
        x = rng.standard_normal((rows, 2 * m)).astype(np.float32)
        np.testing.assert_array_equal(linear(q, "dot", isa)(x), dot_oracle(x, q), err_msg=f"n={n} m={m} rows={rows}")


@pytest.mark.parametrize(("stages", "percent"), [(1, 0.30), (2, 0.63), (3, 0.96), (4, 1.11)])
def test_how_far_weights_are_off(stages: int, percent: float) -> None:
    """Scales as of weights of a normal distribution, halving from stage to stage; the figures of docs/architecture.md."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        spread = 1 + 0.05 * rng.standard_normal((stages, 2, 2))
        scales = (0.5 ** np.arange(stages)[:, None, None] * spread).astype(np.float32)
        all_squares = sum(float(np.sum(np.multiply(counts, np.square(values)))) for values, counts in rounded_values(scales))
        errors.append(error_of(scales, float(grid_of(scales))) / all_squares)
    found = 100 * np.sqrt(np.mean(errors))
    assert found == pytest.approx(percent, abs=0.03)
