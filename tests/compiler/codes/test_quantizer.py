"""The quantizer against an independent derivation with angles in float64, and its invariants."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import oracle
from fairy2i_export import quantize
from fairy2i_export.codes.quantized import QuantizedLinear, merge_widely_linear
from fairy2i_export.codes.weight_checks import looks_dequantized
from fairy2i_export.errors import OptionError, WeightError


def bf16_weights(rng: np.random.Generator, rows: int, cols: int, std: float = 0.02) -> np.ndarray:
    return (rng.standard_normal((rows, cols)) * std).astype(ml_dtypes.bfloat16)


def assert_equals_oracle(weight: np.ndarray, stages: int) -> None:
    q = quantize(weight, stages)
    codes, scales = oracle.quantize(weight.astype(np.float32), stages)
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(q.scales, scales.astype(np.float32))


def test_codes_and_scales_of_1000_random_layers() -> None:
    rng = np.random.default_rng(0)
    for i in range(1000):
        rows, cols = 2 * rng.integers(1, 40, 2)
        assert_equals_oracle(bf16_weights(rng, int(rows), int(cols), float(10 ** rng.uniform(-4, 1))), 1 + i % 4)


@pytest.mark.parametrize("size", [2, 6, 86, 172, 576, 4096])
def test_codes_and_scales_of_real_sizes(size: int) -> None:
    rng = np.random.default_rng(size)
    assert_equals_oracle(bf16_weights(rng, size, size), 2)
    if size < 4096:
        assert_equals_oracle(bf16_weights(rng, size, 64), 4)


def codes_of(re: np.ndarray, im: np.ndarray, profile: str = "fp32") -> np.ndarray:
    """First-stage codes of the complex numbers re + i im: as the only row of U, with W = 0."""
    re, im = (np.asarray(part, np.float32)[None] for part in (re, im))
    a = np.block([[re, -im], [im, re]])
    return quantize(a, 1, profile).codes[0, 0, 0]  # type: ignore[arg-type]


def test_ties_are_common_and_follow_the_rule() -> None:
    """About 0.2 % of bfloat16 entries lie on a sector border: equal signs go to the imaginary axis."""
    a = bf16_weights(np.random.default_rng(1), 512, 512).astype(np.float32)
    u_re = oracle.bf16(oracle.bf16(a[:256, :256] + a[256:, 256:]) / 2)
    u_im = oracle.bf16(oracle.bf16(a[256:, :256] - a[:256, 256:]) / 2)
    tie = np.abs(u_re) == np.abs(u_im)
    assert 0.001 < tie.mean() < 0.004
    codes = quantize(a, 1).codes[0, 0][tie]
    same = np.sign(u_re[tie]) == np.sign(u_im[tie])
    assert same.any()
    np.testing.assert_array_equal(codes % 2, same.astype(np.uint8))


def test_phase_codes_at_borders_and_zeros() -> None:
    z = 0.0
    points = [
        (1, 1, 1), (-1, 1, 2), (-1, -1, 3), (1, -1, 0),  # borders belong to the next sector counter-clockwise
        (2, 1, 0), (1, 2, 1), (-2, 1, 2), (-1, 2, 1), (-2, -1, 2), (-1, -2, 3), (2, -1, 0), (1, -2, 3),
        (1, z, 0), (-1, z, 2), (-1, -z, 2), (z, 1, 1), (-z, 1, 1), (z, -1, 3),
        (z, z, 0), (z, -z, 0), (-z, z, 0), (-z, -z, 2),
    ]  # fmt: skip
    re, im, code = (np.array(v) for v in zip(*points, strict=True))
    for exponent in (0, -126, -60, 40, 120):
        for profile in ("fp32", "bf16-reference"):
            np.testing.assert_array_equal(codes_of(re * 2.0**exponent, im * 2.0**exponent, profile), code)


finite = st.floats(-1e4, 1e4, width=32)


def test_merge_is_the_inverse_of_the_split() -> None:
    """A matrix made of scales and codes alone is what one stage of the quantizer finds again."""
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 4, (2, 8, 16)).astype(np.uint8)
    value = oracle.UNIT[codes] * np.array([1.5, 0.25])[:, None, None]
    a = merge_widely_linear(*(part.astype(np.float32) for z in value for part in (z.real, z.imag)))
    q = quantize(a, 1, "fp32")
    np.testing.assert_array_equal(q.codes[0], codes)
    np.testing.assert_array_equal(q.scales[0], [[1.5, 1.5], [0.25, 0.25]])
    np.testing.assert_array_equal(q.dequantize(), a)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda s: (2 * s[0], 2 * s[1])), elements=finite
    ),
    st.integers(1, 4),
    st.sampled_from(["bf16-reference", "fp32"]),
)
def test_invariants(weight: np.ndarray, stages: int, profile: str) -> None:
    q = quantize(weight, stages, profile)  # type: ignore[arg-type]
    n, m = weight.shape[0] // 2, weight.shape[1] // 2
    assert q.codes.shape == (stages, 2, n, m)
    assert q.codes.dtype == np.uint8
    assert q.codes.max() <= 3
    assert q.scales.dtype == np.float32
    assert (q.scales >= np.float32(9.9e-7)).all()
    # each stage alone is the quantization by that many stages: stages are added, never revised
    shorter = quantize(weight, 1, profile)  # type: ignore[arg-type]
    np.testing.assert_array_equal(q.codes[0], shorter.codes[0])
    np.testing.assert_array_equal(q.scales[0], shorter.scales[0])
    if profile == "fp32":
        np.testing.assert_allclose(
            q.dequantize("none"), oracle.dense(q.codes, q.scales), rtol=1e-5, atol=1e-4 * q.scales.max()
        )


def test_dequantize_equals_the_reference_pipeline_bit_for_bit() -> None:
    """Stage sums and block sums are rounded to bfloat16 one after the other, as the reference adds them."""
    rng = np.random.default_rng(2)
    for stages in (1, 2, 3, 4):
        q = quantize(bf16_weights(rng, 86, 64), stages)
        parts = []
        for matrix in range(2):
            total = np.zeros((43, 32), complex)
            for t in range(stages):
                c = oracle.UNIT[q.codes[t, matrix]]
                s_re, s_im = q.scales[t, matrix].astype(np.float64)
                step = total + c.real * s_re + 1j * c.imag * s_im
                total = oracle.bf16(step.real) + 1j * oracle.bf16(step.imag)
            parts.append(total)
        u, w = parts
        blocks = [[w.real + u.real, w.imag - u.imag], [w.imag + u.imag, u.real - w.real]]
        expected = np.block([[oracle.bf16(b) for b in row] for row in blocks])
        np.testing.assert_array_equal(q.dequantize(), expected)
        close = q.dequantize("none")
        np.testing.assert_allclose(close, oracle.dense(q.codes, q.scales), rtol=1e-6, atol=1e-8)
        assert np.linalg.norm(close - expected) / np.linalg.norm(expected) < 0.004


def test_torch_reference_formulas_agree() -> None:
    """The published formulas written with torch in bfloat16 (angle and masks), off the ties that its angle cannot decide."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for rows, cols in ((86, 64), (256, 512)):
        a = (torch.randn(rows, cols) * 0.02).to(torch.bfloat16)
        n, m = rows // 2, cols // 2
        a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
        q = quantize(a.float().numpy().astype(ml_dtypes.bfloat16), 1)
        pairs = ((a11 + a22, a21 - a12), (a11 - a22, a12 + a21))
        for matrix, (re, im) in enumerate(pairs):
            re, im = 0.5 * re, 0.5 * im
            phase = torch.angle(torch.complex(re.float(), im.float())).numpy()
            k = (np.floor(phase / (np.pi / 2) + 0.5).astype(int) % 4).astype(np.uint8)
            decided = (re.abs() != im.abs()).numpy()
            np.testing.assert_array_equal(q.codes[0, matrix][decided], k[decided])
            for axis, part in ((0, re), (1, im)):
                mean = part.abs()[torch.from_numpy(q.codes[0, matrix] % 2 == axis)].mean()
                assert q.scales[0, matrix, axis] == mean.float().item()


def test_relative_error_of_gaussian_weights() -> None:
    weight = np.random.default_rng(3).standard_normal((512, 512)).astype(np.float32)
    for stages, expected in ((1, 0.602), (2, 0.362), (3, 0.244), (4, 0.183)):
        error = np.linalg.norm(quantize(weight, stages).dequantize() - weight) / np.linalg.norm(weight)
        assert error == pytest.approx(expected, abs=0.01)


def test_row_multiplier() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((64, 96)).astype(np.float32) * rng.uniform(0.01, 1, (64, 1)).astype(np.float32)
    weight[5] = 0
    plain, scaled = quantize(weight, 2), quantize(weight, 2, row_multiplier="rms")
    assert scaled.row_multiplier is not None
    rms = np.sqrt((oracle.bf16(weight) ** 2).mean(axis=1))
    rms[5] = 1
    np.testing.assert_allclose(scaled.row_multiplier, rms, rtol=2**-8)
    np.testing.assert_array_equal(scaled.row_multiplier, oracle.bf16(scaled.row_multiplier))
    error = [np.linalg.norm(q.dequantize("none") - weight) / np.linalg.norm(weight) for q in (plain, scaled)]
    assert error[1] < error[0]
    codes, scales = oracle.quantize(oracle.bf16(oracle.bf16(weight) / scaled.row_multiplier[:, None]), 2)
    np.testing.assert_array_equal(scaled.codes, codes)
    np.testing.assert_array_equal(scaled.scales, scales.astype(np.float32))
    dense = oracle.dense(codes, scales.astype(np.float32)) * scaled.row_multiplier[:, None].astype(np.float64)
    np.testing.assert_allclose(scaled.dequantize("none"), dense, rtol=1e-5, atol=1e-7)


def test_zero_and_one_axis_matrices() -> None:
    floor = float(np.float32(1e-6).astype(ml_dtypes.bfloat16))
    q = quantize(np.zeros((4, 4), np.float32), 1)
    assert (q.codes == 0).all()
    np.testing.assert_array_equal(q.scales, np.full((1, 2, 2), floor, np.float32))
    real = np.block([[np.eye(3), np.zeros((3, 3))], [np.zeros((3, 3)), np.eye(3)]]).astype(np.float32)
    assert quantize(real, 1).scales[0, 0, 1] == np.float32(floor)  # no imaginary entry: the floor, unused


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes(dtype: type) -> None:
    weight = np.random.default_rng(5).standard_normal((6, 8)).astype(ml_dtypes.bfloat16)
    q = quantize(weight.astype(dtype), 2)
    np.testing.assert_array_equal(q.codes, quantize(weight, 2).codes)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(4), "expected a matrix"),
        (np.zeros((2, 2, 2)), "expected a matrix"),
        (np.zeros((3, 4)), "even, non-zero dimensions"),
        (np.zeros((4, 3)), "even, non-zero dimensions"),
        (np.zeros((0, 4)), "even, non-zero dimensions"),
        (np.array([[1, 2], [np.nan, 4]]), r"1 of 4 values are not finite, the first at row 1, column 0 \(nan\)"),
        (np.array([[1, np.inf], [np.inf, 4]]), "2 of 4 values are not finite"),
    ],
)
def test_bad_weights_are_refused(weight: np.ndarray, message: str) -> None:
    with pytest.raises(WeightError, match=f"model.q_proj: .*{message}"):
        quantize(weight, name="model.q_proj")


@pytest.mark.parametrize(
    "options", [{"stages": 0}, {"stages": 5}, {"stages": True}, {"profile": "fp8"}, {"row_multiplier": "max"}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=str(next(iter(options)))):
        quantize(np.ones((2, 2)), **options)  # type: ignore[arg-type]


LATENTS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "outliers": lambda rng, shape: rng.standard_normal(shape) * np.where(rng.random(shape) < 0.001, 100, 1),
    "student": lambda rng, shape: rng.standard_t(2.5, shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "row scaled": lambda rng, shape: rng.standard_normal(shape) * rng.lognormal(0, 1, (shape[0], 1)),
}


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("shape", [(64, 64), (64, 172), (576, 192), (512, 2048)])
def test_latent_weights_are_not_taken_for_dequantized(kind: str, shape: tuple[int, int]) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weight = (LATENTS[kind](rng, shape) * 0.02).astype(ml_dtypes.bfloat16)
        assert not looks_dequantized(weight.astype(np.float32))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 64), (64, 172), (576, 192), (512, 2048)])
def test_dequantized_weights_are_refused(stages: int, shape: tuple[int, int]) -> None:
    for seed in range(5):
        weight = bf16_weights(np.random.default_rng(seed), *shape)
        for profile in ("bf16-reference", "fp32"):
            dense = quantize(weight, stages, profile).dequantize()  # type: ignore[arg-type]
            with pytest.raises(WeightError, match="already a dequantized"):
                quantize(dense)


def test_result_is_immutable_in_shape() -> None:
    q = quantize(np.eye(4, 6), 2)
    assert isinstance(q, QuantizedLinear)
    assert (q.stages, q.n, q.m) == (2, 2, 3)
    with pytest.raises(AttributeError):
        q.codes = q.codes  # type: ignore[misc]
