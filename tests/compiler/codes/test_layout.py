"""Packed format v1: round trips, golden bytes, an independent reading of docs/format.md."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from fairy2i_export import pack, unpack
from fairy2i_export.codes import layout
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.errors import FormatError


def random_codes(seed: int, stages: int, n: int, m: int) -> QuantizedLinear:
    rng = np.random.default_rng(seed)
    return QuantizedLinear(
        codes=rng.integers(0, 4, (stages, 2, n, m), dtype=np.uint8),
        scales=rng.uniform(0.1, 1, (stages, 2, 2)).astype(np.float32),
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))
def test_unpack_is_the_inverse(seed: int, stages: int, n: int, m: int) -> None:
    q = random_codes(seed, stages, n, m)
    p = pack(q)
    assert p.packed.size == layout.packed_size(n, m, stages)
    back = unpack(p)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)


def find_code(packed: np.ndarray, n: int, m: int, stages: int, stage: int, matrix: int, row: int, column: int) -> int:
    """One code by the address formula of docs/format.md, written out for a single element."""
    tiles = (n + 31) // 32
    pair = stage // 2
    if stage == stages - 1 and stages % 2 == 1:  # the last stage of an odd number shares a byte between U and W
        plane, high = stages - 1, matrix
    else:
        plane, high = 2 * pair + matrix, stage % 2
    block, tile = column // 32, row // 32
    cell, byte_column = column % 32 // 4, column % 4 // 2
    half, lane = row % 32 // 16, row % 16
    offset = ((block * tiles + tile) * stages + plane) * 512 + cell * 64 + half * 32 + byte_column * 16 + lane
    bits = int(packed[offset]) >> (4 * high + 2 * (column % 2)) & 3
    return {0: 0, 1: 1, 3: 2, 2: 3}[bits]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_address_of_every_code(stages: int) -> None:
    n, m = 35, 37
    q = random_codes(stages, stages, n, m)
    packed = pack(q).packed
    rng = np.random.default_rng(0)
    for _ in range(500):
        place = tuple(int(rng.integers(limit)) for limit in (stages, 2, n, m))
        assert find_code(packed, n, m, stages, *place) == q.codes[place]


GOLDEN = {
    (1, 1, 1): "47239645",
    (2, 33, 31): "541fbb29",
    (3, 43, 65): "ef4062c5",
    (4, 32, 32): "8b286a8e",
}


@pytest.mark.parametrize(("stages", "n", "m"), GOLDEN)
def test_golden_bytes(stages: int, n: int, m: int) -> None:
    """The bytes of format v1 never change; a change of layout is a new version."""
    index = np.arange(stages * 2 * n * m, dtype=np.uint64)
    codes = ((index * 2654435761 >> 7) % 4).astype(np.uint8).reshape(stages, 2, n, m)
    packed = pack(QuantizedLinear(codes=codes, scales=np.ones((stages, 2, 2), np.float32))).packed
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:8] == GOLDEN[stages, n, m]


def test_worked_example_of_the_specification() -> None:
    """The example in docs/format.md is what the packer writes."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- example -->(.*?)<!-- /example -->", text, re.DOTALL)
    assert match
    example = match.group(1)
    u0, u1, w0, w1 = (
        np.array(
            [[int(v) for v in row.split()] for row in re.search(rf"^{name} = (.*)$", example, re.M).group(1).split("/")]
        )
        for name in ("U0", "U1", "W0", "W1")
    )
    codes = np.array([[u0, w0], [u1, w1]], np.uint8)
    packed = pack(QuantizedLinear(codes=codes, scales=np.ones((2, 2, 2), np.float32))).packed
    stated = {int(a): int(b, 16) for a, b in re.findall(r"^byte +(\d+): 0x([0-9A-F]{2})", example, re.M)}
    assert len(stated) >= 4
    nonzero = {int(i): int(packed[i]) for i in np.flatnonzero(packed)}
    assert stated == nonzero
    assert packed.size == int(re.search(r"packed size: (\d+) bytes", example).group(1))


def without_u(seed: int, n: int, m: int) -> QuantizedLinear:
    q = random_codes(seed, 1, n, m)
    q.scales[:, 0] = 0
    q.codes[:, 0] = 0
    return q


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 70), st.integers(1, 140))
def test_layers_without_u(seed: int, n: int, m: int) -> None:
    """Round trip, and every code at its place: half the columns in the low nibbles, the others in the high ones."""
    q, half = without_u(seed, n, m), -(-m // 2)
    p = pack(q, layout.LAYOUT_CONJUGATE)
    assert p.packed.size == layout.packed_size(n, m, 1, 2) == -(-half // 32) * -(-n // 32) * 512
    np.testing.assert_array_equal(p.scales[0], q.scales[[0, 0], [1, 1]])
    back = unpack(p)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)
    rng = np.random.default_rng(seed)
    for row, column in zip(rng.integers(0, n, 20), rng.integers(0, m, 20), strict=True):
        place = (0, int(column >= half), int(row), int(column % half))
        assert find_code(p.packed, n, half, 1, *place) == q.codes[0, 1, row, column]


def test_golden_bytes_of_a_layer_without_u() -> None:
    index = np.arange(2 * 43 * 85, dtype=np.uint64)
    codes = ((index * 2654435761 >> 7) % 4).astype(np.uint8).reshape(1, 2, 43, 85)
    scales = np.array([[[0, 0], [1, 1]]], np.float32)
    packed = pack(QuantizedLinear(codes=codes, scales=scales), layout.LAYOUT_CONJUGATE).packed
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:8] == "50aa5bc6"


def test_worked_example_of_a_layer_without_u() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- example 2 -->(.*?)<!-- /example 2 -->", text, re.DOTALL)
    assert match
    w = [[int(v) for v in row.split()] for row in re.search(r"^W0 = (.*)$", match[1], re.M).group(1).split("/")]
    codes = np.array([[np.zeros_like(w), w]], np.uint8)
    packed = pack(QuantizedLinear(codes, np.array([[[0, 0], [1, 1]]], np.float32)), layout.LAYOUT_CONJUGATE).packed
    stated = {int(a): int(b, 16) for a, b in re.findall(r"^byte +(\d+): 0x([0-9A-F]{2})", match[1], re.M)}
    assert stated == {int(i): int(packed[i]) for i in np.flatnonzero(packed)}
    assert packed.size == int(re.search(r"packed size: (\d+) bytes", match[1]).group(1))


def test_layers_with_u_do_not_fit_version_2() -> None:
    for q in (random_codes(0, 1, 3, 5), random_codes(0, 2, 3, 5)):
        with pytest.raises(FormatError, match="holds one stage of W alone"):
            pack(q, layout.LAYOUT_CONJUGATE)
    with pytest.raises(FormatError, match="layout: expected 1 or 2, got 3"):
        pack(random_codes(0, 1, 3, 5), 3)
    p = pack(without_u(0, 3, 5), layout.LAYOUT_CONJUGATE)
    with pytest.raises(FormatError, match="those of W twice"):
        unpack(replace(p, scales=np.array([[[1, 2], [1, 3]]], np.float32)))


def test_padding_is_zero() -> None:
    q = random_codes(0, 2, 3, 5)
    q.codes[:] = 2  # both sign bits set
    packed = pack(q).packed
    assert np.unpackbits(packed).sum() == q.codes.size * 2


def test_header_is_generated_from_the_layout() -> None:
    assert (ROOT / "custom_ops" / "src" / "base" / "layout.h").read_text(encoding="ascii") == layout.c_header()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout_version": 3}, "layout_version: expected 1 or 2, got 3"),
        ({"layout_version": 2}, "stages: expected 1 with layout version 2"),
        ({"scale_scope": 1}, "scale_scope"),
        ({"stages": 0}, "stages"),
        ({"stages": 3}, "packed: expected uint8"),
        ({"n": 0}, "complex rows and columns"),
        ({"m": 1 << 24}, "complex rows and columns"),
        ({"packed": np.zeros(3, np.uint8)}, "packed: expected uint8"),
        ({"packed": np.zeros(1024, np.int8)}, "packed: expected uint8"),
        ({"scales": np.zeros((1, 2, 2), np.float32)}, "scales: expected float32"),
        ({"scales": np.zeros((2, 2, 2))}, "scales: expected float32"),
        ({"row_multiplier": np.zeros(3, np.float32)}, "row_multiplier"),
        ({"col_multiplier": np.zeros(3, np.float32)}, "col_multiplier"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    p = pack(random_codes(0, 2, 3, 5))
    with pytest.raises(FormatError, match=message):
        unpack(replace(p, **change))  # type: ignore[arg-type]


def test_codes_are_checked() -> None:
    q = random_codes(0, 2, 3, 5)
    with pytest.raises(FormatError, match="codes must be 0 to 3"):
        pack(replace(q, codes=q.codes + 1))
    with pytest.raises(FormatError, match="expected uint8 codes"):
        pack(replace(q, codes=q.codes.astype(np.int64)))
    with pytest.raises(FormatError, match="row_multiplier"):
        pack(replace(q, row_multiplier=np.ones(3, np.float32)))


def test_module_prints_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert sys.byteorder == "little"  # the format is little-endian; big-endian hosts are not supported
    assert "F2I_BYTE_PLANES" in layout.c_header()
