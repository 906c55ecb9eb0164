"""The function body of Fairy2iMatMul, in ONNX Runtime without the C library and in the ONNX reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fairy2i_export import pack, quantize
from fairy2i_export.codes.layout import LAYOUT_CONJUGATE
from fairy2i_export.codes.strategies.ifairy import quantize_conjugate
from fairy2i_export.onnx_graph.function import matmul_function
from fairy2i_export.onnx_graph.operator import DOMAIN, INPUTS, OP_NAME, OPSET
from oracle import rounded_halves

OPTIONAL = ("bias", "row_multiplier", "col_multiplier")


def one_node_model(
    operands: dict[str, npt.NDArray[Any]],
    n: int,
    k: int,
    stages: int,
    dtype: int,
    x_dims: list[str | int],
    layout: int = 1,
    bits: int = 0,
) -> onnx.ModelProto:
    names = [name if name in operands else "" for name in INPUTS[1:]]
    attributes = {"K": k, "N": n, "stages": stages, "layout_version": layout, "scale_scope": 0}
    if layout == LAYOUT_CONJUGATE:
        attributes["activation_bits"] = bits
    node = helper.make_node(OP_NAME, ["X", *names], ["Y"], domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("X", dtype, x_dims)],
        [helper.make_tensor_value_info("Y", dtype, [*x_dims[:-1], n])],
        [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    function = ir.serde.serialize_function(matmul_function(rounding=layout == LAYOUT_CONJUGATE))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def results(model: onnx.ModelProto, x: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"X": x})[0], ReferenceEvaluator(model).run(None, {"X": x})[0]]


@pytest.mark.parametrize("given", [(), ("bias",), ("row_multiplier",), ("col_multiplier",), OPTIONAL])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "k"), [(2, 2), (6, 10), (64, 64), (86, 172), (134, 70)])
def test_equals_the_dequantized_product(n: int, k: int, stages: int, given: tuple[str, ...]) -> None:
    rng = np.random.default_rng(n * k + stages)
    q = quantize(rng.standard_normal((n, k)), stages)
    sizes = {"bias": n, "row_multiplier": n, "col_multiplier": k}
    extra = {name: rng.standard_normal(sizes[name]).astype(np.float32) for name in given}
    p = pack(q)
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    expected = x.astype(np.float64) * extra.get("col_multiplier", 1)
    expected = expected @ q.dequantize("none").astype(np.float64).T * extra.get("row_multiplier", 1) + extra.get("bias", 0)

    model = one_node_model(
        {"packed": p.packed, "scales": p.scales, **extra}, n, k, stages, onnx.TensorProto.FLOAT, ["b", "s", k]
    )
    for got in results(model, x):
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 2e-6 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("given", [(), OPTIONAL])
@pytest.mark.parametrize(("n", "k"), [(6, 10), (64, 64), (86, 172), (134, 70), (6, 260)])
def test_equals_the_dequantized_product_without_u(n: int, k: int, given: tuple[str, ...], bits: int) -> None:
    rng = np.random.default_rng(n * k)
    q = quantize_conjugate(rng.standard_normal((n, k // 2)), "fp32")
    sizes = {"bias": n, "row_multiplier": n, "col_multiplier": k}
    extra = {name: rng.standard_normal(sizes[name]).astype(np.float32) for name in given}
    p = pack(q, LAYOUT_CONJUGATE)
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    read = x * extra.get("col_multiplier", np.float32(1))
    expected = (rounded_halves(read) if bits else read).astype(np.float64)
    expected = expected @ q.dequantize("none").astype(np.float64).T * extra.get("row_multiplier", 1) + extra.get("bias", 0)
    operands = {"packed": p.packed, "scales": p.scales, **extra}
    model = one_node_model(operands, n, k, 1, onnx.TensorProto.FLOAT, ["b", "s", k], layout=2, bits=bits)
    for got in results(model, x):
        assert np.abs(got - expected).max() <= 2e-6 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("shape", [(5,), (4, 5), (0, 5), (2, 0, 5), (1, 2, 3, 5)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    shape = (*shape[:-1], 10)
    q = quantize(rng.standard_normal((6, 10)))
    p = pack(q)
    x = rng.standard_normal(shape).astype(np.float32)
    dims: list[str | int] = [f"d{i}" for i in range(len(shape) - 1)]
    model = one_node_model({"packed": p.packed, "scales": p.scales}, 6, 10, 2, onnx.TensorProto.FLOAT, [*dims, 10])
    for got in results(model, x):
        assert got.shape == (*shape[:-1], 6)
        np.testing.assert_allclose(got, x @ q.dequantize("none").T, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_float16_activations_and_bias(with_bias: bool) -> None:
    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((70, 66)))
    p = pack(q)
    operands: dict[str, npt.NDArray[Any]] = {"packed": p.packed, "scales": p.scales}
    if with_bias:
        operands["bias"] = rng.standard_normal(70).astype(np.float16)
    x = rng.standard_normal((3, 66)).astype(np.float16)
    expected = x.astype(np.float64) @ q.dequantize("none").T + operands.get("bias", np.float16(0)).astype(np.float64)
    for got in results(one_node_model(operands, 70, 66, 2, onnx.TensorProto.FLOAT16, ["rows", 66]), x):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-2)


def test_padding_bits_do_not_matter() -> None:
    """Rows and columns beyond the matrix may hold any bits."""
    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((6, 10)))
    p = pack(q)
    ones = np.full(p.packed.shape, 255, np.uint8)
    # where the padding is: bits that differ between packing a matrix and packing the matrix with its codes inverted
    inverted = pack(type(q)(q.codes ^ 2, q.scales))
    used = p.packed ^ inverted.packed
    dirty = (p.packed & used) | (ones & ~used)
    assert (dirty != p.packed).any()
    x = rng.standard_normal((2, 10)).astype(np.float32)
    clean_y, dirty_y = (
        results(one_node_model({"packed": b, "scales": p.scales}, 6, 10, 2, onnx.TensorProto.FLOAT, ["r", 10]), x)[0]
        for b in (p.packed, dirty)
    )
    np.testing.assert_array_equal(clean_y, dirty_y)
