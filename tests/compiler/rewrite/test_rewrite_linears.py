"""Every kind of linear layer the rewriter knows, in graphs made by hand; and the reasons for those it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import oracle
from fairy2i_export import quantize
from fairy2i_export.errors import OptionError
from fairy2i_export.rewrite import rewrite_onnx
from rewrite_helpers import assert_equal_outputs, operator_matrices, rewrite, run, save_model

K, N = 48, 70


def matrix(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = matrix(2, 3, K, seed=1)
X2 = matrix(4, K, seed=2)
BIAS = matrix(N, seed=3)

# name, nodes, x, initializers, biases fused
KINDS: list[Any] = [
    ("MatMul", "y = MatMul (x, w)", X, {"w": matrix(K, N)}, 0),
    ("MatMul of a vector", "y = MatMul (x, w)", X[0, 0], {"w": matrix(K, N)}, 0),
    ("MatMul + bias", "p = MatMul (x, w)\ny = Add (p, b)", X, {"w": matrix(K, N), "b": BIAS}, 1),
    ("bias + MatMul", "p = MatMul (x, w)\ny = Add (b, p)", X, {"w": matrix(K, N), "b": BIAS}, 1),
    ("bias [1, 1, N]", "p = MatMul (x, w)\ny = Add (p, b)", X, {"w": matrix(K, N), "b": BIAS[None, None]}, 1),
    ("bias of one value", "p = MatMul (x, w)\ny = Add (p, b)", X, {"w": matrix(K, N), "b": BIAS[:1]}, 1),
    ("bias of more dimensions", "p = MatMul (x, w)\ny = Add (p, b)", X, {"w": matrix(K, N), "b": BIAS[None, None, None]}, 0),
    ("bias per row", "p = MatMul (x, w)\ny = Add (p, b)", X, {"w": matrix(K, N), "b": matrix(3, 1)}, 0),
    ("product used twice", "p = MatMul (x, w)\nq = Add (p, b)\ny = Mul (p, q)", X, {"w": matrix(K, N), "b": BIAS}, 0),
    ("transposed initializer", "t = Transpose <perm = [1, 0]> (w)\ny = MatMul (x, t)", X, {"w": matrix(N, K)}, 0),
    ("transposed without perm", "t = Transpose (w)\ny = MatMul (x, t)", X, {"w": matrix(N, K)}, 0),
    ("identity", "i = Identity (w)\nj = Identity (i)\ny = MatMul (x, j)", X, {"w": matrix(K, N)}, 0),
    ("float16 behind a Cast", "c = Cast <to = 1> (w)\ny = MatMul (x, c)", X, {"w": matrix(K, N).astype(np.float16)}, 0),
    (
        "bfloat16 behind a Cast",
        "c = Cast <to = 1> (w)\ny = MatMul (x, c)",
        X,
        {"w": matrix(K, N).astype(ml_dtypes.bfloat16)},
        0,
    ),
    (
        "int8 behind DequantizeLinear, per channel",
        "d = DequantizeLinear <axis = 1> (w, s, z)\ny = MatMul (x, d)",
        X,
        {
            "w": np.random.default_rng(0).integers(-128, 128, (K, N)).astype(np.int8),
            "s": np.linspace(0.01, 0.02, N).astype(np.float32),
            "z": np.zeros(N, np.int8),
        },
        0,
    ),
    (
        "a whole subgraph",
        "i = Identity (w)\nh = Mul (i, half)\ns = Add (h, h)\nr = Reshape (s, shape)\ny = MatMul (x, r)",
        X,
        {"w": matrix(K, N), "half": np.float32(0.5), "shape": np.array([K, N], np.int64)},
        0,
    ),
    ("left operand", "y = MatMul (w, x)", matrix(2, K, 5), {"w": matrix(N, K)}, 0),
    ("left operand, vector", "y = MatMul (w, x)", matrix(K), {"w": matrix(N, K)}, 0),
    ("Gemm", "y = Gemm (x, w)", X2, {"w": matrix(K, N)}, 0),
    ("Gemm transB", "y = Gemm <transB = 1> (x, w)", X2, {"w": matrix(N, K)}, 0),
    ("Gemm + C", "y = Gemm <transB = 1> (x, w, b)", X2, {"w": matrix(N, K), "b": BIAS}, 1),
    ("Gemm + C [1, N]", "y = Gemm (x, w, b)", X2, {"w": matrix(K, N), "b": BIAS[None]}, 1),
    ("Gemm + scalar C", "y = Gemm (x, w, b)", X2, {"w": matrix(K, N), "b": np.float32(0.7)}, 1),
    (
        "Gemm alpha, beta",
        "y = Gemm <alpha = -0.3, beta = 2.5, transB = 1> (x, w, b)",
        X2,
        {"w": matrix(N, K), "b": BIAS},
        1,
    ),
    ("Gemm C per row, beta", "y = Gemm <beta = 2.5> (x, w, b)", X2, {"w": matrix(K, N), "b": matrix(4, 1)}, 0),
    ("Gemm computed C", "c = Neg (x2)\ny = Gemm <beta = 0.5> (x, w, c)", X2, {"w": matrix(K, N), "x2": matrix(4, N)}, 0),
    ("Gemm transA", "y = Gemm <transA = 1> (x, w, b)", X2.T.copy(), {"w": matrix(K, N), "b": BIAS}, 1),
    ("Gemm, then Add", "g = Gemm (x, w)\ny = Add (g, b)", X2, {"w": matrix(K, N), "b": BIAS}, 1),
]


@pytest.mark.parametrize(("nodes", "x", "initializers", "fused"), [pytest.param(*rest, id=name) for name, *rest in KINDS])
def test_kinds(tmp_path: Path, nodes: str, x: np.ndarray, initializers: dict[str, np.ndarray], fused: int) -> None:
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", x.shape)}, {"y": "float"}, initializers)
    report = rewrite(source)
    assert len(report.rewritten) == 1
    assert report.left == ()
    assert report.passes["replace"] == 1
    assert report.passes["fuse bias"] == fused
    assert (report.rewritten[0].out_features, report.rewritten[0].in_features) == (N, K)
    assert 0.2 < (report.rewritten[0].error or 0) < 0.5
    assert_equal_outputs(source, tmp_path / "out", {"x": x})
    left = {t.name for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert "w" not in left


def test_the_codes_are_those_of_the_quantizer(tmp_path: Path) -> None:
    """Both orientations, every setting: one quantizer, the same as for checkpoints."""
    nodes = "p = MatMul (x, w)\ny = Gemm <transB = 1> (p, v)"
    w, v = matrix(K, N), matrix(K, N, seed=9)
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", ["rows", K])}, {"y": "float"}, {"w": w, "v": v})
    for i, setting in enumerate([(1, "fp32", "none"), (2, "bf16-reference", "rms"), (4, "bf16-reference", "none")]):
        stages, profile, rows = setting
        report = rewrite(source, f"out{i}", stages=stages, profile=profile, row_multiplier=rows)
        assert {x.stages for x in report.rewritten} == {stages}
        found = operator_matrices(tmp_path / f"out{i}")
        for name, latent in (("node0", w.T), ("node1", v)):
            q = quantize(latent, stages, profile, row_multiplier=rows)  # type: ignore[arg-type]
            expected = oracle.dense(q.codes, q.scales) * (1 if q.row_multiplier is None else q.row_multiplier[:, None])
            np.testing.assert_array_equal(found[name], expected)
        assert_equal_outputs(source, tmp_path / f"out{i}", {"x": X2})


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_float16_products(tmp_path: Path, kind: str) -> None:
    nodes = "p = MatMul (x, w)\ny = Add (p, b)" if kind == "MatMul" else "y = Gemm (x, w, b)"
    initializers = {"w": matrix(K, N).astype(np.float16), "b": BIAS.astype(np.float16)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float16", X2.shape)}, {"y": "float16"}, initializers)
    assert rewrite(source).passes["fuse bias"] == 1
    x = X2.astype(np.float16)
    expected = x.astype(np.float64) @ operator_matrices(tmp_path / "out")["node0"].T + initializers["b"]
    for library in (True, False):
        got = run(tmp_path / "out" / "model.onnx", {"x": x}, library=library)[0]
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-2)  # one rounding to float16


def test_bfloat16_products(tmp_path: Path) -> None:
    """The operator has no bfloat16 form: casts around it. onnxruntime has no bfloat16 MatMul to compare with."""
    nodes = "h = Cast <to = 16> (x)\np = MatMul (h, w)\nq = Add (p, b)\ny = Cast <to = 1> (q)"
    initializers = {"w": matrix(K, N).astype(ml_dtypes.bfloat16), "b": BIAS.astype(ml_dtypes.bfloat16)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", X2.shape)}, {"y": "float"}, initializers)
    assert rewrite(source).passes["fuse bias"] == 1
    x = X2.astype(ml_dtypes.bfloat16).astype(np.float64)
    expected = x @ operator_matrices(tmp_path / "out")["node1"].T + initializers["b"].astype(np.float64)
    for library in (True, False):
        got = run(tmp_path / "out" / "model.onnx", {"x": X2}, library=library)[0]
        np.testing.assert_allclose(got, expected, rtol=8e-3, atol=1e-2)  # one rounding to bfloat16


def test_dequantized_matrices_keep_their_codes(tmp_path: Path) -> None:
    """Quantizing them again would change them by 7 %: their own codes are used, --stages or not."""
    three, two = quantize(matrix(N, K), 3), quantize(matrix(K, N, seed=4), 2)
    initializers = {"w": three.dequantize("none").T.copy(), "v": two.dequantize("none").T.copy()}
    nodes = "p = MatMul (x, w)\ny = MatMul (p, v)"
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", X2.shape)}, {"y": "float"}, initializers)
    report = rewrite(source, stages=1)
    assert [(x.origin, x.stages) for x in report.rewritten] == [("recovered", 3), ("recovered", 2)]
    assert report.passes["recognise"] == 2
    assert max(x.error or 0 for x in report.rewritten) < 1e-6
    assert report.warnings == ("2 matrices keep the number of stages that they were made with, not --stages 1",)
    expected = run(source, {"x": X2})[0]
    for library in (True, False):
        got = run(tmp_path / "out" / "model.onnx", {"x": X2}, library=library)[0]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert metadata["fairy2i.stages"] == "2,3"


def test_shared_matrices_are_stored_once_and_other_users_keep_theirs(tmp_path: Path) -> None:
    """A tied embedding, and two products that share one matrix, one of them with a factor."""
    nodes = """e = Gather (w, ids)
    t = Transpose <perm = [1, 0]> (w)
    p = MatMul (x, t)
    q = Gemm <transB = 1, alpha = 2.0> (x, w)
    s = Add (p, q)
    y = Gemm <transB = 1> (x, w)"""
    w = matrix(N, K)
    source = save_model(
        tmp_path / "m.onnx",
        nodes,
        {"x": ("float", X2.shape), "ids": ("int64", [3])},
        {"e": "float", "s": "float", "y": "float"},
        {"w": w},
    )
    report = rewrite(source)
    assert len(report.rewritten) == 3
    model = onnx.load(tmp_path / "out" / "model.onnx")
    sizes = [numpy_helper.to_array(t).nbytes for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert len(sizes) == 2  # the matrix as stored and as transposed by the graph are two values
    ids = np.array([0, 5, 69])
    assert_equal_outputs(source, tmp_path / "out", {"x": X2, "ids": ids})
    np.testing.assert_array_equal(run(tmp_path / "out" / "model.onnx", {"x": X2, "ids": ids})[0], w[ids])


def test_reasons(tmp_path: Path) -> None:
    nodes = """a = MatMul (x, odd)
    b = MatMul (x, x3)
    c = MatMul (x, cube)
    d = MatMul (z, double)
    e = Gemm (left, x3)
    f = MatMul (x, nan)
    g = MatMul (x, few)
    h = MatMul (x, excluded)
    i = MatMul (x, fine)
    j = MatMul (x, default)
    k = MatMul (m, unknown)"""
    nan = matrix(K, N)
    nan[1, 2] = np.nan
    initializers = {
        "odd": matrix(K, 7),
        "cube": matrix(2, K, N),
        "double": matrix(K, N).astype(np.float64),
        "left": matrix(N, 4),
        "nan": nan,
        "few": np.sign(matrix(64, 96))[:K]
        * np.arange(1, 4)[np.random.default_rng(0).integers(0, 3, (K, 96))].astype(np.float32),
        "excluded": matrix(K, N),
        "fine": matrix(K, N),
        "default": matrix(K, N),
        "m": matrix(6, K),
    }
    inputs = {
        "x": ("float", [4, K]),
        "x3": ("float", [4, K]),
        "z": ("double", [4, K]),
        "default": ("float", [K, N]),
        "unknown": ("float", [K, 2]),
    }
    path = tmp_path / "m.onnx"
    outputs = dict.fromkeys("acfghijk", "float") | {"d": "double", "e": "float"}
    nodes = nodes.replace("MatMul (x, x3)", "MatMul (x, x4)").replace("b = ", "x4 = Transpose (x3)\nb = ")
    save_model(path, nodes, inputs, outputs, initializers)
    report = rewrite_onnx(path, tmp_path / "out", exclude=["excluded"])
    assert [x.weight for x in report.rewritten] == ["fine", "m"]
    reasons = {x.name if x.name != "b" else "b": x.reason for x in report.left}
    by_weight = {onnx_node.input[1]: onnx_node.name for onnx_node in onnx.load(path).graph.node if len(onnx_node.input) > 1}
    assert reasons[by_weight["odd"]] == "odd dimension: 48 x 7"
    assert reasons[by_weight["x4"]] == "the matrix is computed at run time"
    assert reasons[by_weight["cube"]] == "the constant has 3 dimensions, expected 2"
    assert reasons[by_weight["double"]] == "number format double; the operator computes in float32"
    assert reasons[by_weight["x3"]] == "the constant is the left operand of a Gemm"
    assert reasons[by_weight["nan"]] == "values that are not finite"
    assert reasons[by_weight["few"]].startswith("only a few distinct values")
    assert reasons[by_weight["excluded"]] == "--exclude"
    assert reasons[by_weight["default"]].startswith("the weight is also a graph input, which callers may replace")
    stored = json.loads((tmp_path / "out" / "rewrite.json").read_text())
    assert {x["name"]: x["reason"] for x in stored["left"]} == reasons
    assert stored["passes"] == report.passes


def test_reasons_for_other_operators(tmp_path: Path) -> None:
    """Operators that hold a matrix in another way are named, and the model around them is rewritten."""
    nodes = """a = com.microsoft.FusedMatMul (x, w)
    b = Einsum <equation = "ij,jk->ik"> (x, w)
    c = com.microsoft.MatMulNBits <K = 48, N = 70, bits = 4, block_size = 16> (x, q, s)
    y = MatMul (x, v)"""
    q = np.zeros((N, 3, 8), np.uint8)
    initializers = {"w": matrix(K, N), "v": matrix(K, N, seed=1), "q": q, "s": np.ones(N * 3, np.float32)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", [4, K])}, dict.fromkeys("abcy", "float"), initializers)
    model = onnx.load(source)
    function = onnx.parser.parse_function(
        '<domain: "local", opset_import: ["" : 18]> inner (x, w) => (y) { y = MatMul (x, w) }'
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, source)
    report = rewrite_onnx(source, tmp_path / "out")
    assert [x.weight for x in report.rewritten] == ["v"]
    assert [x.reason for x in report.left] == [
        "fused operator FusedMatMul: rewrite the model before it is optimized",
        "Einsum with a constant: export it as a MatMul",
        "quantized another way already (MatMulNBits)",
        "inside the model-local function inner, whose weights are its inputs",
    ]
    expected, found = run(source, {"x": X2}), run(tmp_path / "out" / "model.onnx", {"x": X2}, library=True)
    for before, after in zip(expected[:3], found[:3], strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-5)


def test_constants_that_cannot_be_computed(tmp_path: Path) -> None:
    nodes = "w = Gather (v, rows)\ny = MatMul (x, w)\nz = MatMul (x, v)"
    initializers = {"v": matrix(K, N), "rows": np.arange(K) + 1}
    outputs = {"y": "float", "z": "float"}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", [4, K])}, outputs, initializers)
    report = rewrite_onnx(source, tmp_path / "out")
    assert [x.weight for x in report.rewritten] == ["v"]
    assert report.left[0].reason.startswith("the constant w cannot be computed: ")


def test_weights_in_constant_nodes(tmp_path: Path) -> None:
    w, b = matrix(K, N), BIAS
    nodes = [
        helper.make_node("Constant", [], ["w"], name="c1", value=numpy_helper.from_array(w)),
        helper.make_node("Constant", [], ["b"], name="c2", value=numpy_helper.from_array(b)),
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="sum"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [4, K])]
    graph = helper.make_graph(nodes, "constants", inputs, [helper.make_tensor_value_info("y", 1, [4, N])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    report = rewrite(tmp_path / "m.onnx")
    assert (report.passes["fuse bias"], report.passes["prune nodes"]) == (1, 2)
    assert [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node] == ["Fairy2iMatMul"]
    expected = X2.astype(np.float64) @ quantize(w.T).dequantize("none").T + b
    got = run(tmp_path / "out" / "model.onnx", {"x": X2}, library=True)[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_products_inside_branches(tmp_path: Path) -> None:
    """The bodies of If see constants of the outer graph and hold their own."""
    w, v = matrix(K, N), matrix(K, N, seed=5)

    def branch(name: str, matrix_name: str, initializers: list[onnx.TensorProto]) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", matrix_name], [f"{name}_y"], name=f"{name}_matmul")
        output = helper.make_tensor_value_info(f"{name}_y", 1, [4, N])
        return helper.make_graph([node], name, [], [output], initializers)

    then = branch("then", "w", [])
    other = branch("else", "v", [numpy_helper.from_array(v, "v")])
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other)],
        "branches",
        [helper.make_tensor_value_info("x", 1, [4, K]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [4, N])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    report = rewrite(tmp_path / "m.onnx")
    assert len(report.rewritten) == 2
    for condition, latent in ((True, w), (False, v)):
        expected = X2.astype(np.float64) @ quantize(latent.T).dequantize("none").T
        for library in (True, False):
            feeds = {"x": X2, "c": np.array(condition)}
            got = run(tmp_path / "out" / "model.onnx", feeds, library=library)[0]
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_operator_sets(tmp_path: Path, opset: int) -> None:
    """The function body is written for the model's own operator set: the checker wants them equal."""
    source = save_model(
        tmp_path / "m.onnx", "y = MatMul (x, w)", {"x": ("float", X.shape)}, {"y": "float"}, {"w": matrix(K, N)}, opset=opset
    )
    assert rewrite(source).opset == opset
    assert_equal_outputs(source, tmp_path / "out", {"x": X})


@pytest.mark.parametrize("external", [False, True])
def test_rewriting_twice_changes_nothing(tmp_path: Path, external: bool) -> None:
    nodes = "p = MatMul (x, w)\nq = Relu (p)\nr = MatMul (q, v)\ny = MatMul (r, odd)"
    initializers = {"w": matrix(K, N), "v": matrix(N, N), "odd": matrix(N, 3)}
    source = save_model(
        tmp_path / "m.onnx", nodes, {"x": ("float", X.shape)}, {"y": "float"}, initializers, external=external
    )
    first = rewrite(source)
    assert (len(first.rewritten), first.already) == (2, 0)
    second = rewrite(tmp_path / "out" / "model.onnx", "again")
    assert (len(second.rewritten), second.already) == (0, 2)
    assert second.passes == dict.fromkeys(second.passes, 0) | {"find": 1, "select": 1}
    for name in ("model.onnx", "model.onnx.data"):
        out, again = tmp_path / "out" / name, tmp_path / "out" / "again" / name
        assert out.read_bytes() == again.read_bytes()


def test_the_same_globs_twice(tmp_path: Path) -> None:
    """They match the nodes that they made; others are still refused."""
    nodes = "p = MatMul (x, w)\ny = MatMul (p, v)"
    initializers = {"w": matrix(K, N), "v": matrix(N, K)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", X.shape)}, {"y": "float"}, initializers)
    for include in ("node1", "node?"):
        folder = tmp_path / include.replace("?", "_")
        rewrite_onnx(source, folder, include=[include], exclude=["node0"])
        again = rewrite_onnx(folder / "model.onnx", folder / "again", include=[include], exclude=["node0"])
        assert (again.already, len(again.rewritten)) == (1, 0)
        assert (folder / "model.onnx").read_bytes() == (folder / "again" / "model.onnx").read_bytes()
        with pytest.raises(OptionError, match="--include 'v' matches no linear"):
            rewrite_onnx(folder / "model.onnx", folder / "third", include=["v"])


def test_what_was_excluded_can_be_rewritten_later_with_other_stages(tmp_path: Path) -> None:
    nodes = "p = MatMul (x, w)\ny = MatMul (p, v)"
    initializers = {"w": matrix(K, N), "v": matrix(N, K)}
    source = save_model(tmp_path / "m.onnx", nodes, {"x": ("float", X.shape)}, {"y": "float"}, initializers)
    rewrite(source, "first", stages=1, include=["w"])
    report = rewrite_onnx(tmp_path / "first" / "model.onnx", tmp_path / "out", stages=3)
    assert (report.already, [x.weight for x in report.rewritten]) == (1, ["v"])
    assert_equal_outputs(source, tmp_path / "out", {"x": X})
