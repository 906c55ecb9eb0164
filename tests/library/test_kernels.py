"""Every kernel of the C library against independent oracles, called without ONNX Runtime."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os

import numpy as np
import pytest

import oracle
from fairy2i_export import pack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_runtime import core

RUNNABLE = [(k.family, k.isa) for k in core.kernels() if k.available]
LUT = [isa for family, isa in RUNNABLE if family == "lut"]
EXACT = [isa for family, isa in RUNNABLE if family == "exact"]
# complex rows and columns around every tile (32 rows), half (16) and block (32 columns) edge, and real layers
DIMS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 43, 63, 64, 65, 86, 97]


def random_layer(rng: np.random.Generator, n: int, m: int, stages: int, multipliers: bool = False) -> QuantizedLinear:
    scales = (rng.uniform(0.2, 1.0, (stages, 2, 2)) / 1.7 ** np.arange(stages)[:, None, None]).astype(np.float32)
    rows = rng.uniform(0.5, 2.0, 2 * n).astype(np.float32) if multipliers else None
    cols = rng.uniform(0.5, 2.0, 2 * m).astype(np.float32) if multipliers else None
    codes = rng.integers(0, 4, (stages, 2, n, m), dtype=np.uint8)
    return QuantizedLinear(codes=codes, scales=scales, row_multiplier=rows, col_multiplier=cols)


def linear(
    q: QuantizedLinear, kernel: str = "lut", isa: str = "scalar", padding: int | None = None, layout: int = 1
) -> core.Linear:
    p = pack(q, layout)
    if padding is not None:  # put other bits where rows and columns do not exist
        ones = pack(QuantizedLinear(codes=np.full_like(q.codes, 2), scales=q.scales), layout)  # code 2 = both bits set
        p.packed[:] |= ~ones.packed & np.uint8(padding)
    return core.Linear(
        p.packed, p.scales, 2 * q.m, 2 * q.n,
        row_multiplier=p.row_multiplier, col_multiplier=p.col_multiplier, kernel=kernel, isa=isa,
        layout_version=layout,
    )  # fmt: skip


def lut_oracle(x: np.ndarray, q: QuantizedLinear, bias: np.ndarray | None = None) -> np.ndarray:
    rows = []
    for row in x.reshape(-1, 2 * q.m):
        y = oracle.lut(row if q.col_multiplier is None else row * q.col_multiplier, q.codes, q.scales)
        y = y if q.row_multiplier is None else y * q.row_multiplier
        rows.append(y if bias is None else y + bias)
    return np.array(rows, np.float32)


def test_scalar_is_always_there_and_default_is_best() -> None:
    assert "scalar" in LUT
    assert "scalar" in EXACT
    assert core.kernels()[0].family == "lut"
    assert sum(k.is_default for k in core.kernels() if k.family == "lut") == 1


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("isa", LUT)
def test_lut_equals_the_oracle_to_the_bit(isa: str, stages: int) -> None:
    rng = np.random.default_rng(stages)
    for n in DIMS:
        m = int(rng.choice(DIMS))
        q = random_layer(rng, n, m, stages, multipliers=bool(rng.integers(2)))
        x = rng.standard_normal((3, 2 * m)).astype(np.float32)
        bias = rng.standard_normal(2 * n).astype(np.float32) if rng.integers(2) else None
        np.testing.assert_array_equal(linear(q, "lut", isa)(x, bias), lut_oracle(x, q, bias), err_msg=f"n={n} m={m}")


def without_u(q: QuantizedLinear) -> QuantizedLinear:
    scales = q.scales[:1].copy()
    scales[:, 0] = 0
    return dataclasses.replace(q, codes=q.codes[:1], scales=scales)


@pytest.mark.parametrize("padding", [0, 0xFF])
@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_layers_without_u(family: str, isa: str, padding: int) -> None:
    """Layout version 2 in every kernel against float64, whatever the padding holds; odd m, m = 5460 / 4."""
    rng = np.random.default_rng(5)
    allowed = {"exact": 1e-5, "lut": 0.03, "dot": 0.03}[family]
    for m in [*DIMS, 42, 127, 129, 1365]:
        n = int(rng.choice([33, 97, 130]))
        q = without_u(random_layer(rng, n, m, 1, multipliers=bool(rng.integers(2))))
        x = rng.standard_normal((int(rng.choice([1, 3, 9, 40])), 2 * m)).astype(np.float32)
        bias = rng.standard_normal(2 * n).astype(np.float32)
        layer = linear(q, family, isa, padding=padding, layout=2)
        assert oracle.relative(layer(x, bias), oracle.layer(x, q, bias)) <= allowed, (n, m)


@pytest.mark.parametrize("isa", LUT)
def test_lut_without_u_equals_the_oracle_to_the_bit(isa: str) -> None:
    """Block by block first the one half of the columns, at the place of U with conj(x), then the other half."""
    rng = np.random.default_rng(6)
    for m in [1, 2, 5, 63, 64, 65, 131, 258]:
        q = without_u(random_layer(rng, 40, m, 1))
        x, half = rng.standard_normal(2 * m).astype(np.float32), -(-m // 2)
        expected = np.zeros(80, np.float32)
        for start in range(0, half, 32):
            for first, end in ((0, half), (half, m)):
                part = slice(first + start, min(first + start + 32, end))
                if part.stop > part.start:
                    values = np.concatenate([x[:m][part], x[m:][part]])
                    expected = expected + oracle.lut(values, q.codes[..., part], q.scales)
        np.testing.assert_array_equal(linear(q, "lut", isa, layout=2)(x[None])[0], expected, err_msg=f"m={m}")


def test_scales_of_layers_without_u_are_those_of_w_twice() -> None:
    with pytest.raises(core.KernelError, match="scales: expected those of W twice"):
        core.Linear(np.zeros(512, np.uint8), np.array([[[1, 2], [1, 3]]], np.float32), 2, 2, layout_version=2)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_every_isa_equals_scalar_to_the_bit(family: str, isa: str, stages: int) -> None:
    """Outputs are sums of units times integers in one order: equal outputs mean equal integers."""
    rng = np.random.default_rng(stages)
    for n in (1, 16, 33, 97, 129):
        for m in (1, 31, 32, 33, 86, 130):
            q = random_layer(rng, n, m, stages, multipliers=True)
            x = rng.standard_normal((9, 2 * m)).astype(np.float32)
            found, expected = linear(q, family, isa)(x), linear(q, family, "scalar")(x)
            if family == "exact" and isa.startswith("neon"):  # fixed-point tables of 24 bits, see docs/arm.md
                assert oracle.relative(found, expected) < 1e-6
            else:
                np.testing.assert_array_equal(found, expected, err_msg=f"{n} {m}")


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("isa", EXACT)
def test_exact_mode_meets_the_contract(isa: str, stages: int) -> None:
    rng = np.random.default_rng(stages)
    for m in DIMS:
        n = int(rng.choice(DIMS))
        q = random_layer(rng, n, m, stages, multipliers=bool(rng.integers(2)))
        x = rng.standard_normal((3, 2 * m)).astype(np.float32)
        bias = rng.standard_normal(2 * n).astype(np.float32)
        assert oracle.relative(linear(q, "exact", isa)(x, bias), oracle.layer(x, q, bias)) < 1e-6, (n, m)


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_real_size_layer_meets_the_accuracy_contract(family: str, isa: str) -> None:
    rng = np.random.default_rng(5)
    q = random_layer(rng, 256, 2048, 2)
    x = rng.standard_normal((2, 4096)).astype(np.float32)
    outliers = x.copy()
    outliers[:, rng.choice(4096, 16, replace=False)] *= 30  # 0.4 % of the channels
    limits = (1e-5, 1e-5) if family == "exact" else (0.015, 0.03)
    layer = linear(q, family, isa)
    assert oracle.relative(layer(x), oracle.layer(x, q)) < limits[0]
    assert oracle.relative(layer(outliers), oracle.layer(outliers, q)) < limits[1]


@pytest.mark.parametrize("isa", LUT)
def test_real_shapes_equal_scalar(isa: str) -> None:
    rng = np.random.default_rng(6)
    for n, m in ((86, 2752), (2752, 86), (5504 // 4, 288), (1, 5504)):
        q = random_layer(rng, n, m, 2)
        x = rng.standard_normal((2, 2 * m)).astype(np.float32)
        np.testing.assert_array_equal(linear(q, "lut", isa)(x), linear(q, "lut", "scalar")(x))


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_rows_and_threads_do_not_change_results(family: str, isa: str) -> None:
    rng = np.random.default_rng(7)
    q = random_layer(rng, 300, 70, 2)
    layer = linear(q, family, isa)
    x = rng.standard_normal((70, 140)).astype(np.float32)  # more rows than one group of tables holds
    alone = np.concatenate([layer(row[None]) for row in x])
    for rows in (1, 2, 3, 4, 5, 8, 17, 33, 64, 70):
        for threads in (1, 2, 3, 4):
            np.testing.assert_array_equal(layer(x[:rows], threads=threads), alone[:rows])
    assert layer(x[:0]).shape == (0, 600)
    np.testing.assert_array_equal(layer(x.reshape(2, 5, 7, 140)), alone.reshape(2, 5, 7, 600))


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
@pytest.mark.parametrize("padding", [0xFF, 0x5A])
def test_padding_bits_do_not_matter(family: str, isa: str, padding: int) -> None:
    rng = np.random.default_rng(8)
    for n, m, stages in ((3, 5, 1), (33, 33, 2), (17, 65, 3), (40, 7, 4)):
        q = random_layer(rng, n, m, stages, multipliers=True)
        x = rng.standard_normal((2, 2 * m)).astype(np.float32)
        np.testing.assert_array_equal(linear(q, family, isa, padding)(x), linear(q, family, isa)(x))


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_a_row_of_nan(family: str, isa: str, bad: float) -> None:
    rng = np.random.default_rng(9)
    layer = linear(random_layer(rng, 40, 70, 2), family, isa)
    x = rng.standard_normal((5, 140)).astype(np.float32)
    good = layer(x)
    for column in (0, 69, 70, 139):
        broken = x.copy()
        broken[2, column] = bad
        y = layer(broken)
        assert np.isnan(y[2]).all()
        np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(good, 2, 0))


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_extreme_activations(family: str, isa: str) -> None:
    rng = np.random.default_rng(10)
    q = random_layer(rng, 33, 65, 2)
    layer = linear(q, family, isa)
    x = rng.standard_normal((1, 130)).astype(np.float32)
    assert (layer(np.zeros((2, 130), np.float32)) == 0).all()
    for factor in (1e-28, 1e-20, 1e20, 1e34):
        y = layer((x * np.float32(factor)).astype(np.float32))
        assert oracle.relative(y.astype(np.float64) / factor, oracle.layer(x, q)) < 0.02
    tiny = layer(x * np.float32(1e-42))  # denormal: may count as zero, must not become anything else
    assert np.abs(tiny).max() < 1e-38
    overflow = layer(np.full((1, 130), 3e38, np.float32))
    assert not np.isfinite(overflow).all()


# exponents of two of scales, x, row and column multiplier: float32 holds the outputs, not what plainly leads to them
FAR = [
    (127, -33, None, None), (127, -127, None, None), (127, 0, -125, None), (127, -149, 30, None), (127, 0, -127, None),
    (-105, 0, 106, None), (-126, 0, 126, None), (-149, 30, 120, None), (-149, 110, None, None), (-140, 5, 126, 10),
    (0, -105, 106, None), (0, -126, 126, None), (10, -146, 126, 10), (0, 100, -100, None), (0, 118, -118, None),
    (-100, 118, -18, None), (-60, -60, 120, None), (-75, -100, 100, 75), (0, -100, 100, 0), (0, -60, 120, -60),
    (100, -100, 0, 0), (40, -100, 120, -60), (-31, 0, 31, None), (101, 0, -101, None), (0, -31, 31, None),
]  # fmt: skip


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_sizes_far_from_one_do_not_matter(family: str, isa: str, stages: int) -> None:
    """Whatever the sizes of the operands, an output that float32 can hold is as accurate as ever, on every ISA alike."""
    rng = np.random.default_rng(20 + stages)
    q = random_layer(rng, 33, 65, stages)
    x = rng.standard_normal((9, 130)).astype(np.float32)
    limit = 1e-5 if family == "exact" else 0.03
    for scales, size, rows, cols in FAR:
        far = QuantizedLinear(
            codes=q.codes,
            scales=np.ldexp(q.scales, scales),
            row_multiplier=None if rows is None else np.ldexp(rng.uniform(0.5, 1, 66), rows).astype(np.float32),
            col_multiplier=None if cols is None else np.ldexp(rng.uniform(0.5, 1, 130), cols).astype(np.float32),
        )
        values = np.ldexp(x, size).astype(np.float32)
        bias = np.ldexp(rng.standard_normal(66), scales + size + (rows or 0) + (cols or 0)).astype(np.float32)
        y = linear(far, family, isa)(values, bias)
        where = (scales, size, rows, cols)
        assert oracle.relative(y.astype(np.float64), oracle.layer(values, far, bias)) < limit, where
        if family != "exact" or not isa.startswith("neon"):
            np.testing.assert_array_equal(y, linear(far, family, "scalar")(values, bias), err_msg=str(where))


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_rows_of_all_sizes_together(family: str, isa: str) -> None:
    """A row gives what it gives alone, whatever is done to its neighbours, in groups and panels of every size."""
    rng = np.random.default_rng(30)
    exponents = rng.integers(-149, 120, 70)
    x = np.ldexp(rng.standard_normal((70, 140)), exponents[:, None]).astype(np.float32)
    x[[3, 40]] = 0
    x[[7, 50], [5, 100]] = np.nan, np.inf
    x[9] = np.float32(1e-45)
    for scale in (1e-44, 1e-20, 1.0, 1e38):
        q = random_layer(rng, 40, 70, 2, multipliers=True)
        q = dataclasses.replace(q, scales=(q.scales * np.float32(scale)).astype(np.float32))
        layer = linear(q, family, isa)
        alone = np.concatenate([layer(row[None]) for row in x])
        assert np.isnan(alone[[7, 50]]).all()
        assert (alone[[3, 40]] == 0).all()
        for rows in (8, 33, 64, 70):
            np.testing.assert_array_equal(layer(x[:rows], threads=2), alone[:rows])


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_beyond_the_largest_float(family: str, isa: str) -> None:
    """Outputs that float32 cannot hold are infinite or NaN, never a number; all scales zero give zero."""
    rng = np.random.default_rng(31)
    q = random_layer(rng, 33, 65, 2)
    one = np.ones((1, 130), np.float32)
    for scale, size in ((3e38, 1e3), (1e20, 1e30), (1.0, 3e38)):
        codes = np.zeros_like(q.codes)  # all of them add up
        far = QuantizedLinear(codes=codes, scales=np.full((2, 2, 2), scale, np.float32))
        y = linear(far, family, isa)(one * np.float32(size))
        assert not np.isfinite(y[:, :33]).any(), (scale, size)
    for scale in (0.0, -0.0):
        nothing = QuantizedLinear(codes=q.codes, scales=np.full((2, 2, 2), scale, np.float32))
        for size in (1e-45, 1.0, 3e38):
            assert (linear(nothing, family, isa)(one * np.float32(size)) == 0).all()


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_nothing_is_read_or_written_beyond_the_buffers(family: str, isa: str) -> None:
    """Each buffer ends at an inaccessible page (and is unaligned for it): one byte too far would crash."""
    libc = ctypes.CDLL(None, use_errno=True)
    maps = []

    def guarded(array: np.ndarray) -> np.ndarray:
        page = mmap.PAGESIZE
        size = (array.nbytes + page - 1) // page * page
        region = mmap.mmap(-1, size + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        assert libc.mprotect(ctypes.c_void_p(address + size), page, 0) == 0
        maps.append(region)
        out = np.frombuffer(region, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
        out[...] = array
        return out

    ffi, lib = core._library()
    rng = np.random.default_rng(11)
    for n, m, stages in ((1, 1, 1), (33, 31, 2), (16, 65, 3), (50, 33, 4)):
        q = random_layer(rng, n, m, stages, multipliers=True)
        p = pack(q)
        expected = linear(q, family, isa)
        x = guarded(rng.standard_normal((3, 2 * m)).astype(np.float32))
        bias = guarded(rng.standard_normal(2 * n).astype(np.float32))
        layer = core.Linear(
            guarded(p.packed), guarded(p.scales), 2 * m, 2 * n, kernel=family, isa=isa,
            row_multiplier=guarded(p.row_multiplier), col_multiplier=guarded(p.col_multiplier),
        )  # fmt: skip
        y = guarded(np.zeros((3, 2 * n), np.float32))
        size, message = ffi.new("size_t *"), ffi.new("f2i_message *")
        assert lib.f2i_workspace_size(layer._plan, 3, size, message) == 0
        work = guarded(np.zeros(size[0], np.uint8))
        pointers = [ffi.from_buffer("float[]", a, require_writable=True) for a in (x, bias, y)]
        status = lib.f2i_matmul(
            layer._plan, 3, pointers[0], 2 * m, pointers[1], pointers[2], 2 * n,
            ffi.from_buffer(work, require_writable=True), work.size, ffi.NULL, message,
        )  # fmt: skip
        assert status == 0
        np.testing.assert_array_equal(y, expected(x, bias))


@pytest.mark.parametrize("isa", sorted({None, *(isa for _, isa in RUNNABLE)}, key=str))
def test_auto_is_one_kernel_for_few_rows_and_may_be_another_for_many(isa: str | None) -> None:
    rng = np.random.default_rng(5)
    q = random_layer(rng, 50, 70, 2)
    x = rng.standard_normal((80, 140)).astype(np.float32)
    layer = linear(q, "auto", isa or "")
    least = [*layer.kernels, 1000]
    for first, following, kernel in zip(least, least[1:], layer.kernels.values(), strict=False):
        alone = linear(q, kernel.family, kernel.isa)
        for rows in {first, min(following - 1, 80)}:
            np.testing.assert_array_equal(layer(x[:rows]), alone(x[:rows]))
            assert core.chosen_kernel("auto", isa, rows=rows) == kernel
    found = [(rows, kernel.family) for rows, kernel in layer.kernels.items()]
    if isa is None and {"avx512_vnni"} <= set(core.library_info()["cpu_features"]):
        assert found in ([(1, "dot")], [(1, "lut"), (2, "dot")], [(1, "lut"), (4, "dot")])  # by model, with VBMI, without
    if isa == "avx2":
        assert found == [(1, "lut"), (32, "dot")]
    if isa == "scalar":  # nothing is known
        assert found == [(1, "lut")]


def test_forced_kernels_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    q = random_layer(np.random.default_rng(0), 4, 4, 2)
    for family, isa in RUNNABLE:
        chosen = linear(q, family, isa).kernel
        assert (chosen.family, chosen.isa) == (family, isa)
    monkeypatch.setenv("FAIRY2I_ISA", "scalar")
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    chosen = linear(q, kernel="", isa="").kernel
    assert (chosen.family, chosen.isa) == ("exact", "scalar")
    monkeypatch.setenv("FAIRY2I_ISA", "doesnotexist")
    with pytest.raises(core.KernelError, match=r'"doesnotexist".*unknown.*scalar'):
        linear(q, kernel="lut", isa="")
    monkeypatch.setenv("FAIRY2I_KERNEL", "fastest")
    with pytest.raises(core.KernelError, match=r'"fastest".*lut exact dot'):
        linear(q, kernel="", isa="")


BAD = [
    ({"k": 0}, "K: expected an even number"),
    ({"k": 7}, "K: expected an even number"),
    ({"k": -2}, "K: expected"),
    ({"k": 2**31}, "K: expected"),
    ({"k": 2**62}, "K: expected"),
    ({"n": 2**31 - 1}, "N: expected"),
    ({"n": 1 << 25}, "N: expected"),
    ({"n": 1 << 24, "k": 1 << 24}, "packed: expected"),
    ({"n": 66}, "packed: expected"),
    ({"layout_version": 0}, "layout_version"),
    ({"layout_version": 3}, "layout_version"),
    ({"layout_version": 2}, "stages: expected 1 with layout_version 2, got 2"),
    ({"scale_scope": 1}, "scale_scope"),
    ({"packed": -1}, "packed: expected 1024 bytes.*got 1023"),
    ({"packed": 1}, "packed: expected 1024 bytes.*got 1025"),
    ({"packed": None}, "packed: expected 1024 bytes.*got 0"),
    ({"scales": np.ones((5, 2, 2), np.float32)}, "stages: expected 1 to 4, got 5"),
    ({"scales": np.ones((2, 2, 1), np.float32)}, r"scales: expected \[2, 2, 2\]"),
    ({"scales": np.full((2, 2, 2), np.nan, np.float32)}, "scales: expected finite"),
    ({"scales": np.full((2, 2, 2), -np.inf, np.float32)}, "scales: expected finite"),
    ({"row_multiplier": np.ones(3, np.float32)}, "row_multiplier: expected 4 values, got 3"),
    ({"col_multiplier": np.ones(7, np.float32)}, "col_multiplier: expected 6 values, got 7"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    p = pack(random_layer(np.random.default_rng(0), 2, 3, 2))
    arguments: dict[str, object] = {"packed": p.packed, "scales": p.scales, "k": 6, "n": 4} | change
    if isinstance(change.get("packed", ""), int):
        arguments["packed"] = np.resize(p.packed, p.packed.size + change["packed"])  # type: ignore[operator]
    if "packed" in change and change["packed"] is None:
        arguments["packed"] = np.zeros(0, np.uint8)
    with pytest.raises(core.KernelError, match=message):
        core.Linear(**arguments)  # type: ignore[arg-type]
