"""Layers with activation_bits in every kernel against numpy, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

import fairy2i_runtime
import oracle
from fairy2i_export import pack
from fairy2i_export.codes.layout import LAYOUT_CONJUGATE, PackedLinear, check_packed
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.rounding import rounded_activations
from fairy2i_export.errors import FormatError
from fairy2i_export.onnx_graph.operator import DOMAIN, OP_NAME
from fairy2i_runtime import core
from ifairy_models import DATA

RUNNABLE = [(k.family, k.isa) for k in core.kernels() if k.available]
WHOLE = [(family, isa) for family, isa in RUNNABLE if family != "exact"]
SIZES = [(1, 1), (2, 5), (31, 32), (33, 64), (43, 65), (16, 129), (97, 258), (40, 1365)]  # complex rows and columns
ROWS = [1, 2, 3, 9, 12, 16, 17, 33, 70]  # around the groups of every kernel
F32 = npt.NDArray[np.float32]


def layer(
    rng: np.random.Generator, n: int, m: int, scales: tuple[float, float] = (0.37, 0.21), **more: F32
) -> QuantizedLinear:
    both = np.array([[[0, 0], scales]], np.float32)
    return QuantizedLinear(codes=rng.integers(0, 4, (1, 2, n, m), dtype=np.uint8), scales=both, **more)  # type: ignore[arg-type]


def linear(q: QuantizedLinear, family: str, isa: str) -> core.Linear:
    p = pack(q, LAYOUT_CONJUGATE)
    multipliers = {"row_multiplier": p.row_multiplier, "col_multiplier": p.col_multiplier}
    return core.Linear(
        p.packed, p.scales, 2 * p.m, 2 * p.n, kernel=family, isa=isa, layout_version=2, activation_bits=8, **multipliers
    )


def rows_of(rng: np.random.Generator, rows: int, m: int) -> F32:
    """Rows of very different sizes."""
    return (rng.standard_normal((rows, 2 * m)) * 10.0 ** rng.integers(-4, 3, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize(("family", "isa"), WHOLE)
def test_sums_are_exactly_those_of_whole_numbers(family: str, isa: str) -> None:
    """With scales of 1 and a largest magnitude of 127 in both halves the outputs are the sums themselves."""
    rng = np.random.default_rng(1)
    for n, m in SIZES:
        q = layer(rng, n, m, (1, 1))
        unit = 1j ** q.codes[0, 1].astype(np.int64)
        c_re, c_im = unit.real.round().astype(np.int64), unit.imag.round().astype(np.int64)
        for rows in ROWS:
            x = rng.integers(-127, 128, (rows, 2, m))
            x[rng.random((rows, 2)) < 0.3] = 127  # every table at its limits
            x[:, :, 0] = 127 * rng.choice([-1, 1], (rows, 2))
            re, im = x[:, 0], x[:, 1]
            expected = np.concatenate([re @ c_re.T + im @ c_im.T, re @ c_im.T - im @ c_re.T], axis=1)
            found = linear(q, family, isa)(x.reshape(rows, 2 * m).astype(np.float32))
            np.testing.assert_array_equal(found, expected, err_msg=f"n={n} m={m} rows={rows}")


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_equals_the_product_of_what_is_rounded(family: str, isa: str) -> None:
    rng = np.random.default_rng(2)
    for n, m in SIZES:
        sizes = {"row_multiplier": 2 * n, "col_multiplier": 2 * m}
        more = {name: rng.uniform(0.5, 2, size).astype(np.float32) for name, size in sizes.items() if rng.integers(2)}
        q, bias = layer(rng, n, m, **more), rng.standard_normal(2 * n).astype(np.float32)
        for rows in ROWS:
            x = rows_of(rng, rows, m)
            read = oracle.rounded_halves(x * more.get("col_multiplier", np.float32(1)))
            expected = oracle.layer(read, dataclasses.replace(q, col_multiplier=None), bias)
            found = linear(q, family, isa)(x, bias, threads=int(rng.integers(1, 3)))
            size = np.abs(expected).max(axis=1, keepdims=True)
            assert np.abs((found - expected) / size).max() < 3e-6, (n, m, rows)


@pytest.mark.parametrize("family", ["lut", "dot"])
def test_rows_do_not_depend_on_others_nor_outputs_on_the_kernel(family: str) -> None:
    rng = np.random.default_rng(3)
    q, x = layer(rng, 97, 131), rows_of(rng, 70, 131)
    expected = linear(q, "lut", "scalar")(x)
    for isa in (isa for name, isa in WHOLE if name == family):
        compiled = linear(q, family, isa)
        np.testing.assert_array_equal(compiled(x), expected, err_msg=isa)
        np.testing.assert_array_equal(np.concatenate([compiled(row[None]) for row in x]), expected, err_msg=isa)


def test_auto_is_lut() -> None:
    """What is faster for many rows of other layers is slower here."""
    p = pack(layer(np.random.default_rng(0), 33, 70), LAYOUT_CONJUGATE)
    found = core.Linear(p.packed, p.scales, 140, 66, kernel="auto", layout_version=2, activation_bits=8)
    assert {rows: kernel.family for rows, kernel in found.kernels.items()} == {1: "lut"}


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_golden_rounding_of_the_released_code(family: str, isa: str) -> None:
    """Rows of very different sizes, one of zeros, one below the smallest magnitude, through a layer."""
    with np.load(DATA / "unit.npz") as arrays:
        x, read = (
            np.concatenate([arrays[f"{name}_{part}"] for part in ("real", "imag")], axis=1).astype(np.float32)
            for name in ("act_in", "act_out_f32")
        )
    np.testing.assert_allclose(rounded_activations(x, 8), read, rtol=1e-6, atol=0)
    q = layer(np.random.default_rng(4), 33, x.shape[1] // 2)
    expected = oracle.layer(read, q)
    found = linear(q, family, isa)(x)
    for row, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, right, rtol=0, atol=3e-6 * np.abs(right).max())


@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_unusual_numbers(family: str, isa: str) -> None:
    """NaN and infinities make their row NaN and no other; zeros give the bias; the largest and the smallest floats are read."""
    rng = np.random.default_rng(5)
    q, bias = layer(rng, 5, 70), np.arange(10, dtype=np.float32)
    x = rows_of(rng, 40, 70)
    x[3, 7], x[11, 100], x[20, 3] = np.nan, np.inf, -np.inf
    x[5], x[6, :70], x[7], x[8] = 0, 0, 1e-42, np.sign(x[8]) * 1e30
    found = linear(q, family, isa)(x, bias)
    lost = [3, 11, 20]
    assert np.isnan(found[lost]).all()
    kept = np.delete(np.arange(40), lost)
    np.testing.assert_array_equal(found[[5, 7]], np.stack([bias, bias]))
    expected = oracle.layer(oracle.rounded_halves(x[kept]), q, bias)
    assert np.abs((found[kept] - expected) / np.abs(expected).max(axis=1, keepdims=True)).max() < 3e-6


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 3e38])
@pytest.mark.parametrize(("family", "isa"), RUNNABLE)
def test_scales_far_from_one(family: str, isa: str, scale: float) -> None:
    rng = np.random.default_rng(6)
    q, size = layer(rng, 5, 70, (scale, scale)), 1e-6 if scale > 1 else 1e6
    x = (rng.standard_normal((3, 140)) * size).astype(np.float32)
    expected = oracle.layer(oracle.rounded_halves(x), q)
    assert oracle.relative(linear(q, family, isa)(x), expected) < 3e-6


BAD = [
    ({"activation_bits": 8}, "activation_bits: expected 0 with layout.version 1, got 8"),
    ({"activation_bits": 4, "layout_version": 2}, "activation_bits: expected 0 or 8.*, got 4"),
    ({"activation_bits": -8, "layout_version": 2}, "activation_bits: expected 0 or 8.*, got -8"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_contradictions_are_refused(change: dict[str, int], message: str) -> None:
    q = layer(np.random.default_rng(0), 2, 4)
    p = pack(q, change.get("layout_version", 1))
    with pytest.raises(core.KernelError, match=message):
        core.Linear(p.packed, p.scales, 8, 4, **change)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=message):
        check_packed(dataclasses.replace(p, **change))  # type: ignore[arg-type]


def one_node(p: PackedLinear, kind: int = onnx.TensorProto.FLOAT, **attributes: int | None) -> onnx.ModelProto:
    given: dict[str, Any] = {
        "K": 2 * p.m, "N": 2 * p.n, "stages": 1, "layout_version": p.layout_version, "scale_scope": 0, **attributes,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    node = helper.make_node(OP_NAME, ["x", "packed", "scales"], ["y"], name="the.node", domain=DOMAIN, **given)
    tensors = [numpy_helper.from_array(p.packed, "packed"), numpy_helper.from_array(p.scales, "scales")]
    x = helper.make_tensor_value_info("x", kind, ["rows", 2 * p.m])
    graph = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info("y", kind, ["rows", 2 * p.n])], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session_of(model: onnx.ModelProto) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    fairy2i_runtime.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("half", [False, True])
def test_the_node_reads_the_attribute(half: bool) -> None:
    rng = np.random.default_rng(7)
    q, kind = layer(rng, 5, 70), onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    p, x = pack(q, LAYOUT_CONJUGATE), rng.standard_normal((4, 140)).astype(np.float16 if half else np.float32)
    for bits in (0, 8):
        (found,) = session_of(one_node(p, kind, activation_bits=bits)).run(None, {"x": x})
        own = core.Linear(p.packed, p.scales, 140, 10, layout_version=2, activation_bits=bits)(x.astype(np.float32))
        np.testing.assert_array_equal(found, own.astype(x.dtype))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "attribute activation_bits: expected an integer with layout_version 2, found none"),
        ({"activation_bits": 4}, "activation_bits: expected 0 or 8, got 4"),
        ({"layout_version": 1, "activation_bits": 8}, "activation_bits: expected 0 with layout_version 1, got 8"),
    ],
)
def test_nodes_that_are_refused(attributes: dict[str, int], message: str) -> None:
    """A reader that would pass over the attribute, or guess it, computed something else than what was trained."""
    model = one_node(pack(layer(np.random.default_rng(8), 5, 70), LAYOUT_CONJUGATE), **attributes)
    with pytest.raises(Exception, match=f"the.node.*{message}"):
        session_of(model)
