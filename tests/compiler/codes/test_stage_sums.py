"""A dequantized matrix gives back the codes that it was made of; anything else gives nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fairy2i_export import quantize
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.recover.row_sums import recover_any
from fairy2i_export.codes.recover.stage_sums import recover


def latent(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.02)


@pytest.mark.parametrize("shape", [(64, 96), (70, 66), (256, 512)])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
def test_codes_and_scales_come_back(stages: int, shape: tuple[int, int], profile: str) -> None:
    q = quantize(latent(shape, stages), stages, profile)  # type: ignore[arg-type]
    found = recover(q.dequantize("none"))
    assert found is not None
    np.testing.assert_array_equal(found.codes, q.codes)
    np.testing.assert_allclose(found.scales, q.scales, rtol=1e-6)
    if profile == "bf16-reference":
        np.testing.assert_array_equal(found.scales, q.scales)
    np.testing.assert_allclose(found.dequantize("none"), q.dequantize("none"), rtol=0, atol=1e-6 * q.scales.max())


@pytest.mark.parametrize("kind", ["reference bfloat16", "float16"])
@pytest.mark.parametrize("stages", [1, 2])
def test_sixteen_bit_matrices(kind: str, stages: int) -> None:
    """What the published code writes: sums rounded to bfloat16; and sums stored in float16."""
    q = quantize(latent((128, 192)), stages)
    dense = q.dequantize() if kind != "float16" else q.dequantize("none").astype(np.float16).astype(np.float32)
    found = recover(dense)
    assert found is not None
    np.testing.assert_array_equal(found.codes, q.codes)
    np.testing.assert_allclose(found.scales, q.scales, rtol=0.008)  # one or two bfloat16 steps
    assert np.abs(found.dequantize("none") - dense).max() <= 0.005 * np.abs(dense).max()


def test_scales_that_no_greedy_quantizer_makes() -> None:
    """Codes at random, scales of real and imaginary axis in different proportions."""
    rng = np.random.default_rng(3)
    scales = np.array([[[1.0, 0.8], [0.9, 1.1]], [[0.45, 0.6], [0.7, 0.2]], [[0.21, 0.13], [0.3, 0.05]]], np.float32)
    q = QuantizedLinear(rng.integers(0, 4, (3, 2, 40, 50)).astype(np.uint8), scales)
    found = recover(q.dequantize("none"))
    assert found is not None
    np.testing.assert_allclose(found.dequantize("none"), q.dequantize("none"), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(2, 2), (4, 6), (64, 96), (512, 512)])
def test_latent_weights_are_not_taken_for_sums(shape: tuple[int, int], dtype: type) -> None:
    for seed in range(5):
        assert recover(latent(shape, seed).astype(dtype).astype(np.float32)) is None


def test_near_misses_are_refused() -> None:
    q = quantize(latent((64, 96)), 2)
    dense = q.dequantize("none")
    noise = np.random.default_rng(1).uniform(0.99, 1.01, dense.shape).astype(np.float32)
    assert recover(dense * noise) is None
    noise[5:] = 1  # a few entries
    assert recover(dense * noise) is None
    assert recover(np.round(latent((64, 96)) * 200)) is None  # small integers: few values, but no stages
    assert recover(np.zeros((64, 96), np.float32)) is None
    assert recover(np.ones((3, 4), np.float32)) is None
    assert recover(np.ones((0, 4), np.float32)) is None


@pytest.mark.parametrize("shape", [(64, 192), (96, 256)])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_row_multipliers_come_back(stages: int, shape: tuple[int, int]) -> None:
    """Relative to the first row; the codes are those of the quantizer."""
    weight = latent(shape, stages) * np.random.default_rng(1).uniform(0.3, 3, (shape[0], 1)).astype(np.float32)
    q = quantize(weight, stages, row_multiplier="rms")
    dense = q.dequantize("none")
    assert recover(dense) is None
    found = recover_any(dense)
    assert found is not None
    assert found.row_multiplier is not None
    assert q.row_multiplier is not None
    np.testing.assert_array_equal(found.codes, q.codes)
    np.testing.assert_allclose(found.row_multiplier, q.row_multiplier / q.row_multiplier[0], rtol=1e-5)
    assert (np.abs(found.dequantize("none") - dense).max(axis=1) <= 1e-5 * np.abs(dense).max(axis=1)).all()


def test_no_row_multipliers_in_other_matrices() -> None:
    for seed in range(5):
        assert recover_any(latent((64, 96), seed)) is None
        assert recover_any(latent((64, 8), seed)) is None
    dense = quantize(latent((64, 96)), 2, row_multiplier="rms").dequantize("none")
    noise = np.random.default_rng(1).uniform(0.999, 1.001, dense.shape).astype(np.float32)
    assert recover_any(dense * noise) is None
    noise[:40] = 1
    assert recover_any(dense * noise) is None
    assert recover_any(np.zeros((4, 64), np.float32)) is None
    assert recover_any(np.ones((64, 96), np.float32).cumsum(axis=1)) is None
