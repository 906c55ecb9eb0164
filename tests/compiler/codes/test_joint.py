"""The joint quantizer against brute force, its fit against numpy's least squares, and never worse than the greedy one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from fairy2i_export import pack, quantize
from fairy2i_export.codes.layout import pack_coded
from fairy2i_export.codes.native import Points
from fairy2i_export.codes.quantizer import find_scales
from fairy2i_export.codes.strategies.joint import least_squares, point_error
from fairy2i_export.errors import FormatError, OptionError, WeightError


def nearest_codes(re: np.ndarray, im: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return Points(scales).codes(re, im)


def fit_scales(
    re: np.ndarray,
    im: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """What a fit makes of entries whose codes are given: the sums over every combination of codes, added here by numpy."""
    stages, bins = len(codes), np.zeros(re.size, np.intp)
    for code in codes.reshape(stages, -1):
        bins = 4 * bins + code
    ones = np.ones(re.size) if weights is None else weights.reshape(-1).astype(float)
    values = (ones, ones * re.reshape(-1), ones * im.reshape(-1))
    sums = np.stack([np.bincount(bins, value, 4**stages) for value in values], axis=1)
    return least_squares(sums, np.zeros((stages, 2)) if start is None else start)


KINDS = ("gauss", "laplace", "rows", "rank 1", "few values", "real axis", "zeros", "tiny")


def entries(rng: np.random.Generator, size: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Complex entries of which many lie on borders: bfloat16 values, zeros of both signs, equal parts."""
    re, im = (rng.standard_normal(size).astype(ml_dtypes.bfloat16).astype(np.float32) for _ in range(2))
    kind = rng.integers(0, 12, size)
    re[kind == 0], im[kind == 1] = 0.0, -0.0
    im[kind == 2] = re[kind == 2]
    both = kind == 3
    re[both], im[both] = -0.0, 0.0
    return re, im


def matrix(kind: str, rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    a = rng.standard_normal((rows, cols)) * 0.02
    if kind == "laplace":
        a = rng.laplace(size=(rows, cols)) * 0.1
    if kind == "rows":
        a *= 10 ** rng.uniform(-2, 1, (rows, 1))
    if kind == "rank 1":
        a = np.outer(rng.standard_normal(rows), rng.standard_normal(cols))
    if kind == "few values":
        a = rng.integers(-2, 3, (rows, cols)) * 0.25
    if kind == "real axis":
        a[: rows // 2, cols // 2 :] = 0
        a[rows // 2 :, : cols // 2] = 0
    if kind == "zeros":
        a *= 0
    if kind == "tiny":
        a *= 1e-7
    return a.astype(np.float32)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_codes_equal_brute_force(stages: int) -> None:
    rng = np.random.default_rng(stages)
    for i in range(60):
        scales = rng.uniform(0, 1.5, (stages, 2)).astype(np.float32)
        if i % 3 == 0:
            scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
        if i % 5 == 0:
            scales[-1] = scales[0]  # different combinations, one point
        re, im = entries(rng, int(rng.integers(1, 700)))
        found = nearest_codes(re, im, scales)
        np.testing.assert_array_equal(found, oracle.nearest(re, im, scales))
        codes, q_re, q_im = Points(scales).round(re, im)
        np.testing.assert_array_equal(codes, found)
        unit = oracle.UNIT[codes]
        np.testing.assert_allclose(q_re, (scales[:, :1] * unit.real).sum(axis=0), atol=1e-6)
        np.testing.assert_allclose(q_im, (scales[:, 1:] * unit.imag).sum(axis=0), atol=1e-6)
        # no point at all is nearer, reflections included
        numbers = np.arange(4**stages)
        units = oracle.UNIT[np.stack([numbers // 4**t % 4 for t in range(stages)])]
        every = (scales[:, :1] * units.real).sum(axis=0) + 1j * (scales[:, 1:] * units.imag).sum(axis=0)
        least = np.abs(re + 1j * im - every[:, None]).min(axis=0)
        np.testing.assert_allclose(np.abs(re + 1j * im - (q_re + 1j * q_im)), least, rtol=1e-5, atol=1e-6)


def test_any_shape_and_a_long_array() -> None:
    rng = np.random.default_rng(0)
    scales = np.array([[1.4, 1.3], [0.7, 0.8]], np.float32)
    re, im = entries(rng, (3, 5, 400))
    codes = nearest_codes(re, im, scales)
    assert codes.shape == (2, 3, 5, 400)
    np.testing.assert_array_equal(codes.reshape(2, -1), nearest_codes(re.reshape(-1), im.reshape(-1), scales))
    np.testing.assert_array_equal(nearest_codes(re[:, ::2], im[:, ::2], scales), codes[:, :, ::2])
    assert nearest_codes(re[:0], im[:0], scales).shape == (2, 0, 5, 400)
    for bad in (np.ones((5, 2), np.float32), np.ones((2, 3), np.float32), np.ones(4, np.float32)):
        with pytest.raises(FormatError, match="scales: expected"):
            nearest_codes(re, im, bad)
    with pytest.raises(FormatError, match="arrays of one shape"):
        nearest_codes(re, im[0], scales)


def test_reflected_entries_have_reflected_codes() -> None:
    rng = np.random.default_rng(1)
    scales = rng.uniform(0.2, 1.5, (3, 2)).astype(np.float32)
    re, im = (np.abs(part) + np.float32(1e-3) for part in entries(rng, 500))
    codes = nearest_codes(re, im, scales)
    np.testing.assert_array_equal(nearest_codes(-re, im, scales), np.where(codes % 2 == 0, (codes + 2) % 4, codes))
    np.testing.assert_array_equal(nearest_codes(-re, -im, scales), (codes + 2) % 4)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_is_least_squares(weighted: bool) -> None:
    rng = np.random.default_rng(2)
    re, im = entries(rng, (40, 50))
    weights = rng.uniform(0, 2, re.shape).astype(np.float32) if weighted else None
    codes = rng.integers(0, 4, (3, *re.shape)).astype(np.uint8)
    found = fit_scales(re, im, codes, weights)
    root = np.ones(re.size) if weights is None else np.sqrt(weights.reshape(-1).astype(float))
    for axis, (part, unit) in enumerate(((re, oracle.UNIT[codes].real), (im, oracle.UNIT[codes].imag))):
        expected = np.linalg.lstsq(unit.reshape(3, -1).T * root[:, None], part.reshape(-1) * root, rcond=None)[0]
        np.testing.assert_allclose(found[:, axis], expected, atol=1e-5)


def test_the_fit_keeps_what_entries_do_not_tell() -> None:
    re, im = np.array([[1.0, -1.1, 0.9]], np.float32), np.zeros((1, 3), np.float32)
    codes = np.array([[[0, 2, 0]], [[1, 1, 3]]], np.uint8)
    start = np.array([[9.0, 0.5], [0.25, 8.0]], np.float32)
    np.testing.assert_allclose(fit_scales(re, im, codes, start=start), [[1.0, 0.5], [0.25, 0.0]], atol=1e-6)
    together = np.repeat(codes[:1], 2, axis=0)  # two stages that always agree: only their sum is known
    np.testing.assert_allclose(fit_scales(re, im, together, start=start)[:, 0].sum(), 1.0, atol=1e-6)


def test_sums_against_numpy() -> None:
    rng = np.random.default_rng(3)
    scales = np.array([[1.4, 1.3], [0.7, 0.8]], np.float32)
    re, im = entries(rng, 3000)
    weights = rng.uniform(0, 2, re.shape).astype(np.float32)
    folded = oracle.nearest(np.abs(re), np.abs(im), scales)
    number = 4 * folded[0].astype(int) + folded[1]
    for given_weights, w in ((None, np.ones(re.shape)), (weights, weights.astype(float))):
        sums = Points(scales).sums(re, im, given_weights)
        squares = re.astype(float) ** 2 + im.astype(float) ** 2
        for column, values in enumerate((w, w * np.abs(re), w * np.abs(im), w * squares)):
            np.testing.assert_allclose(sums[:, column], np.bincount(number, values, 16), rtol=1e-9, atol=1e-12)
        _, q_re, q_im = Points(scales).round(re, im)
        left = (w * ((re - q_re).astype(float) ** 2 + (im - q_im).astype(float) ** 2)).sum()
        assert point_error(sums, scales) == pytest.approx(left, rel=1e-5)


def error(a: np.ndarray, **options: Any) -> float:
    return float(np.linalg.norm(a - oracle.dense((q := quantize(a, **options)).codes, q.scales)))


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    stages=st.integers(1, 4),
    profile=st.sampled_from(["fp32", "bf16-reference"]),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
@settings(max_examples=60, deadline=None)
def test_never_worse_than_greedy(kind: str, seed: int, stages: int, profile: Any, shape: tuple[int, int]) -> None:
    a = matrix(kind, np.random.default_rng(seed), 2 * shape[0], 2 * shape[1])
    if profile == "bf16-reference":  # the parts of U and W are rounded as well: compare what is quantized
        a = quantize_free_of_rounding(a)
    joint, greedy = (error(a, stages=stages, profile=profile, quantizer=which) for which in ("joint", "greedy"))
    assert joint <= greedy * (1 + 1e-5) + 1e-7 * float(np.abs(a).max())


def quantize_free_of_rounding(a: np.ndarray) -> np.ndarray:
    """A matrix whose U and W are bfloat16 numbers: multiples of 1/64 of its largest entry's power of two."""
    top = float(np.abs(a).max())
    unit = 2.0 ** np.ceil(np.log2(top)) / 64 if top else 1.0
    return (np.rint(a / unit) * unit).astype(np.float32)


def test_figures_on_gaussian_weights() -> None:
    a = matrix("gauss", np.random.default_rng(4), 512, 512)
    greedy = [error(a, stages=t, quantizer="greedy") / np.linalg.norm(a) for t in (1, 2, 3, 4)]
    joint = [error(a, stages=t, quantizer="joint") / np.linalg.norm(a) for t in (1, 2, 3, 4)]
    np.testing.assert_allclose(greedy, [0.602, 0.361, 0.241, 0.181], atol=0.004)
    np.testing.assert_allclose(joint, [0.602, 0.333, 0.178, 0.0935], atol=0.002)


@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
@pytest.mark.parametrize("stages", [2, 4])
def test_threads_do_not_matter(row_multiplier: Any, stages: int) -> None:
    weight = matrix("rows", np.random.default_rng(5), 1700, 1100).astype(ml_dtypes.bfloat16)
    options: dict[str, Any] = {"quantizer": "joint", "row_multiplier": row_multiplier}
    q = quantize(weight, stages, **options)
    with ThreadPoolExecutor(4) as pool:
        scaled = find_scales(weight, stages, "bf16-reference", pool=pool, **options)
        packed, found = pack_coded(scaled, pool)
    np.testing.assert_array_equal(scaled.scales, q.scales)
    np.testing.assert_array_equal(packed, pack(q).packed)
    a = weight.astype(np.float64)
    assert found == pytest.approx(np.linalg.norm(a - q.dequantize("none")) / np.linalg.norm(a), rel=1e-6)
    assert (q.scales.astype(ml_dtypes.bfloat16).astype(np.float32) == q.scales).all()


@pytest.mark.parametrize("quantizer", ["greedy", "joint"])
def test_learned_multipliers_and_scales(quantizer: Any) -> None:
    rng = np.random.default_rng(6)
    rows, cols = rng.uniform(0.5, 2, 60).astype(np.float32), rng.uniform(0.5, 2, 80).astype(np.float32)
    rows[3], cols[5] = -rows[3], -cols[5]
    inner = matrix("gauss", rng, 60, 80)
    a = (inner * rows[:, None] * cols).astype(np.float32)
    multipliers = {"row_multiplier": rows, "col_multiplier": cols}
    scales = np.abs(quantize(inner, 2, "fp32", quantizer=quantizer).scales * np.float32(1.1))
    divided = a / rows[:, None] / cols
    q = quantize(a, 2, "fp32", quantizer=quantizer, scales=scales, **multipliers)
    expected = quantize(divided, 2, "fp32", quantizer=quantizer, scales=scales)
    np.testing.assert_array_equal(q.scales, scales)
    np.testing.assert_array_equal(q.codes, expected.codes)
    if quantizer == "joint":
        u = (divided[:30, :40] + divided[30:, 40:]) / 2, (divided[30:, :40] - divided[:30, 40:]) / 2
        np.testing.assert_array_equal(q.codes[:, 0], oracle.nearest(*map(np.float32, u), scales[:, 0]))
    np.testing.assert_allclose(
        q.dequantize("none"), expected.dequantize("none") * rows[:, None] * cols, rtol=1e-5, atol=1e-7
    )
    bf16 = quantize(a, 2, quantizer=quantizer, **multipliers)  # each division is rounded
    steps = oracle.bf16(oracle.bf16(oracle.bf16(a) / rows[:, None]) / cols)
    np.testing.assert_array_equal(bf16.codes, quantize(steps, 2, quantizer=quantizer).codes)
    scaled = find_scales(a, 2, "fp32", quantizer=quantizer, scales=scales, **multipliers)
    _, found = pack_coded(scaled)
    assert found == pytest.approx(np.linalg.norm(a - q.dequantize("none")) / np.linalg.norm(a), rel=1e-5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"row_multiplier": np.ones(7, np.float32)}, r"row multiplier: expected float32 \[8\], found float32 \[7\]"),
    (
        {"row_multiplier": np.zeros(8, np.float32)},
        r"row multiplier: expected finite values other than zero, found 0 at \[0\]",
    ),
    (
        {"col_multiplier": np.full(6, np.nan, np.float32)},
        "column multiplier: expected finite values other than zero, found nan",
    ),
    ({"col_multiplier": np.ones(6, np.int64)}, "column multiplier: expected float32"),
    ({"scales": np.ones((1, 2, 2), np.float32)}, r"scales: expected float32 \[2, 2, 2\], found float32 \[1, 2, 2\]"),
    ({"scales": np.full((2, 2, 2), np.inf, np.float32)}, "scales: expected finite values, found inf"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_operands_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightError, match=f"w: {words}"):
        quantize(np.ones((8, 6), np.float32), 2, name="w", **options)
    with pytest.raises(OptionError, match="unknown quantizer 'best': expected one of greedy, joint"):
        quantize(np.ones((8, 6), np.float32), 2, quantizer="best")  # type: ignore[arg-type]
    with pytest.raises(WeightError, match="not finite"):
        quantize(np.full((8, 6), np.nan, np.float32), 2, quantizer="joint")
    with pytest.raises(WeightError, match="not finite"):
        quantize(np.full((8, 6), np.nan, np.float32), 2, scales=np.ones((2, 2, 2), np.float32))
