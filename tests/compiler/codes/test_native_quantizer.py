"""The C side of the quantizer and the packer: arguments are checked, and blocks of rows do not change a bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fairy2i_export import pack, quantize
from fairy2i_export.codes.layout import pack_coded, packed_size
from fairy2i_export.codes.native import LatentMatrix, each, pack_rows, row_blocks
from fairy2i_export.codes.quantizer import find_scales
from fairy2i_export.errors import FormatError
from fairy2i_runtime.ops.core import binding


@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_blocks_and_threads_do_not_matter(dtype: type, row_multiplier: Any) -> None:
    weight = (np.random.default_rng(0).standard_normal((3000, 1100)) * 0.02).astype(dtype)
    q = quantize(weight, 3, row_multiplier=row_multiplier)
    with ThreadPoolExecutor(4) as pool:
        scaled = find_scales(weight, 3, "bf16-reference", row_multiplier=row_multiplier, pool=pool)
        packed, error = pack_coded(scaled, pool)
    assert len(row_blocks(1500, 550, 32)) > 3
    np.testing.assert_array_equal(scaled.scales, q.scales)
    np.testing.assert_array_equal(packed, pack(q).packed)
    a = weight.astype(np.float64)
    assert error == pytest.approx(np.linalg.norm(a - q.dequantize("none")) / np.linalg.norm(a), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
@pytest.mark.parametrize("m", [3, 700, 1025])
def test_complex_parts_stand_for_the_real_matrix(dtype: type, profile: str, m: int) -> None:
    """Every function gives what the matrix [[re, im], [im, -re]] gives; chunks of columns end within the halves."""
    re, im = (np.random.default_rng(3).standard_normal((2, 33, m)) * 0.02).astype(dtype)
    parts = LatentMatrix(re, 1, profile, im)
    whole = LatentMatrix(np.block([[re, im], [im, -re]]), 1, profile)
    assert (parts.n, parts.m) == (whole.n, whole.m) == (33, m)
    scales = np.array([[[0, 0], [0.02, 0.03]]], np.float32)
    for got, expected in (
        (parts.parts((0, 33)), whole.parts((0, 33))),
        (parts.squares((2, 33)), whole.squares((2, 33))),
        (parts.sums((0, 33), scales[:0]), whole.sums((0, 33), scales[:0])),
        (parts.codes((0, 33), scales), whole.codes((0, 33), scales)),
    ):
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    dense = [np.empty((66, 2 * m), np.float32) for _ in range(2)]
    for matrix, out in zip((parts, whole), dense, strict=True):
        matrix.dequantize((0, 33), scales, out)
    np.testing.assert_array_equal(*dense)
    assert not parts.parts((0, 33))[0].any()


def test_sums_of_rows() -> None:
    """What a scale is made of, against numpy: per row and axis the sum of magnitudes and how many there are."""
    weight = np.random.default_rng(1).standard_normal((60, 1300)).astype(np.float32)
    matrix = LatentMatrix(weight, 2, "fp32")
    q = quantize(weight, 2, "fp32")
    for stage in range(2):
        sums, counts = matrix.sums((5, 25), q.scales[:stage])
        assert sums.shape == counts.shape == (20, 2, 2)
        for axis in range(2):
            np.testing.assert_array_equal(counts[..., axis].T, (q.codes[stage, :, 5:25] % 2 == axis).sum(axis=2))
    a = weight.astype(np.float64)
    u = (a[:30, :650] + a[30:, 650:]) / 2 + 1j * (a[30:, :650] - a[:30, 650:]) / 2
    on_real = q.codes[0, 0] % 2 == 0
    sums, _ = matrix.sums((0, 30), q.scales[:0])
    np.testing.assert_allclose(sums[:, 0, 0], np.where(on_real, abs(u.real), 0).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(sums[:, 0, 1], np.where(on_real, 0, abs(u.imag)).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(matrix.squares((0, 30)).T.reshape(-1), np.square(a).sum(axis=1), rtol=1e-12)


def test_the_array_is_neither_copied_nor_changed() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 64)).astype(ml_dtypes.bfloat16)
    before = weight.copy()
    assert LatentMatrix(weight, 2, "fp32").array is weight
    quantize(weight, 4, row_multiplier="rms")
    np.testing.assert_array_equal(weight, before)
    strided = np.asfortranarray(weight)
    np.testing.assert_array_equal(quantize(strided).codes, quantize(weight).codes)
    unaligned = np.frombuffer(b"x" + weight.tobytes(), np.uint8)[1:].view(ml_dtypes.bfloat16).reshape(64, 64)
    np.testing.assert_array_equal(quantize(unaligned).codes, quantize(weight).codes)


CHANGES: list[tuple[dict[str, int], str]] = [
    ({"k": 7}, "K: expected an even number"),
    ({"n": 0}, "N: expected an even number"),
    ({"stages": 5}, "stages: expected 1 to 4"),
    ({"dtype": 3}, "dtype: expected 0"),
    ({"profile": 2}, "profile: expected 0"),
    ({"bytes": 95}, "data: expected 96 bytes"),
    ({"n": 10}, "data: expected 120 bytes"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_bad_matrices_are_refused(change: dict[str, int], words: str) -> None:
    matrix = LatentMatrix(np.zeros((8, 6), np.float16), 2, "fp32")
    for name, value in change.items():
        setattr(matrix._struct, name, value)
    with pytest.raises(FormatError, match=words):
        matrix.squares((0, 4))


def test_bad_arguments_are_refused() -> None:
    matrix = LatentMatrix(np.zeros((8, 6), np.float32), 2, "fp32")
    scales = np.ones((2, 2, 2), np.float32)
    for rows in ((-1, 2), (2, 1), (0, 5)):
        with pytest.raises((FormatError, ValueError)):  # numpy refuses some of the shapes before the library can
            matrix.codes(rows, scales)
    with pytest.raises(FormatError, match="rows: expected a part of 0 to 4, got 0 to 5"):
        matrix.codes((0, 5), scales)
    with pytest.raises(FormatError, match="scales: expected 8 values, got 4"):
        matrix.codes((0, 4), scales[:1])
    with pytest.raises(FormatError, match="scales: expected 4 per earlier stage"):
        matrix.sums((0, 4), scales)
    matrix.divide_rows(np.ones(3, np.float32))
    with pytest.raises(FormatError, match="row_divisor: expected 8 values, got 3"):
        matrix.squares((0, 4))
    ffi, lib = binding()
    message = ffi.new("f2i_message *")
    assert lib.f2i_quantize_squares(ffi.NULL, 0, 1, ffi.NULL, 0, message) == 1
    assert b"latent: expected a pointer" in ffi.string(message.text)
    assert lib.f2i_quantize_squares(ffi.NULL, 0, 1, ffi.NULL, 0, ffi.NULL) == 1


def test_bad_packing_is_refused() -> None:
    codes = np.zeros((2, 2, 40, 3), np.uint8)
    packed = np.zeros(packed_size(70, 3, 2), np.uint8)
    pack_rows(np.zeros((2, 2, 32, 3), np.uint8), (32, 64), packed, 70)
    pack_rows(np.zeros((2, 2, 6, 3), np.uint8), (64, 70), packed, 70)
    for rows, words in (((0, 40), "whole tiles of 32"), ((30, 70), "whole tiles of 32"), ((32, 96), "within 0 to 70")):
        with pytest.raises(FormatError, match=words):
            pack_rows(codes, rows, packed, 70)
    with pytest.raises(FormatError, match="codes: expected 384 values, got 480"):
        pack_rows(codes, (0, 32), packed, 70)
    with pytest.raises(FormatError, match="packed: expected"):
        pack_rows(np.zeros((2, 2, 32, 3), np.uint8), (0, 32), packed[1:], 70)


def test_row_blocks_cover_the_matrix() -> None:
    for n, m, tile in ((1, 1, 1), (70, 3, 32), (2048, 2048, 32), (16000, 2048, 32), (5, 1 << 23, 1), (100, 1 << 20, 32)):
        blocks = row_blocks(n, m, tile)
        assert [start for start, _ in blocks] == [0, *(end for _, end in blocks[:-1])]
        assert blocks[-1][1] == n
        assert all(start % tile == 0 for start, _ in blocks)
    assert each(lambda rows: rows[1], [(0, 3), (3, 5)], None) == [3, 5]


def test_values_that_overflow() -> None:
    weight = np.full((4, 4), 3e38, np.float32)
    with pytest.raises(Exception, match="overflow when they are added"):
        quantize(weight)
