"""The operator inside onnxruntime: one-node models, types, optional inputs, errors, memory, threads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import oracle
from conftest import in_threads
from fairy2i_export import PackedLinear, pack
from fairy2i_export.codes.layout import packed_size
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_runtime import core, library_path, register

DOMAIN = "ai.fairy2i"
INPUTS = ("packed", "scales", "bias", "row_multiplier", "col_multiplier")


def layer(n: int = 43, m: int = 70, stages: int = 2, seed: int = 0, multipliers: bool = False) -> QuantizedLinear:
    rng = np.random.default_rng(seed)
    return QuantizedLinear(
        codes=rng.integers(0, 4, (stages, 2, n, m), dtype=np.uint8),
        scales=rng.uniform(0.2, 1, (stages, 2, 2)).astype(np.float32),
        row_multiplier=rng.uniform(0.5, 2, 2 * n).astype(np.float32) if multipliers else None,
        col_multiplier=rng.uniform(0.5, 2, 2 * m).astype(np.float32) if multipliers else None,
    )


def build(
    p: PackedLinear,
    *,
    bias: np.ndarray | None = None,
    half: bool = False,
    attributes: dict[str, object] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    shape: tuple[object, ...] = ("batch", "seq", None),
    free: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model with one Fairy2iMatMul node. Operands named in ``free`` become graph inputs instead of initializers."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    values: dict[str, np.ndarray | None] = {
        "packed": p.packed, "scales": p.scales, "bias": bias,
        "row_multiplier": p.row_multiplier, "col_multiplier": p.col_multiplier,
    }  # fmt: skip
    values |= tensors or {}
    names = [name if values[name] is not None else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    given: dict[str, object] = {"K": 2 * p.m, "N": 2 * p.n, "stages": p.stages, "layout_version": 1, "scale_scope": 0}
    given |= attributes or {}
    node = helper.make_node(
        "Fairy2iMatMul", ["x", *names], ["y"], name="layers.0.q_proj", domain=DOMAIN,
        **{k: v for k, v in given.items() if v is not None},
    )  # fmt: skip
    dims = [2 * p.m if d is None else d for d in shape]
    inputs = [helper.make_tensor_value_info("x", kind, dims)]
    for name in free:
        array = values[name]
        assert array is not None
        inputs.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), ["any"] * array.ndim)
        )
    initializers = [numpy_helper.from_array(v, k) for k, v in values.items() if v is not None and k not in free]
    output = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([node], "g", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto | str, threads: int = 2, **entries: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    for key, value in entries.items():
        options.add_session_config_entry(f"fairy2i.{key}", value)
    register(options)
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("multipliers", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_runs_and_equals_the_c_api(with_bias: bool, multipliers: bool) -> None:
    rng = np.random.default_rng(1)
    q = layer(multipliers=multipliers)
    p = pack(q)
    bias = rng.standard_normal(86).astype(np.float32) if with_bias else None
    x = rng.standard_normal((2, 3, 140)).astype(np.float32)
    direct = core.Linear(p.packed, p.scales, 140, 86, row_multiplier=p.row_multiplier, col_multiplier=p.col_multiplier)
    for threads in (1, 2, 3):
        y = session(build(p, bias=bias), threads).run(None, {"x": x})[0]
        np.testing.assert_array_equal(y, direct(x, bias))
    assert oracle.relative(y, oracle.layer(x, q, bias)) < 0.015


@pytest.mark.parametrize("shape", [(140,), (1, 140), (0, 140), (3, 0, 140), (2, 2, 2, 2, 140)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    q = layer()
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    model = build(pack(q), shape=(*(f"d{i}" for i in range(len(shape) - 1)), 140))
    y = session(model, kernel="exact").run(None, {"x": x})[0]
    assert y.shape == (*shape[:-1], 86)
    if x.size:
        assert oracle.relative(y, oracle.layer(x, q)) < 1e-5


def test_output_shape_and_type_are_inferred() -> None:
    for half in (False, True):
        described = session(build(pack(layer()), half=half)).get_outputs()[0]
        assert described.shape == ["batch", "seq", 86]
        assert described.type == ("tensor(float16)" if half else "tensor(float)")


def test_float16_rounds_once() -> None:
    q = layer(multipliers=True)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 140)).astype(np.float16)
    bias = rng.standard_normal(86).astype(np.float16)
    p = pack(q)
    direct = core.Linear(p.packed, p.scales, 140, 86, row_multiplier=p.row_multiplier, col_multiplier=p.col_multiplier)
    y = session(build(p, bias=bias, half=True)).run(None, {"x": x})[0]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, direct(x.astype(np.float32), bias.astype(np.float32)).astype(np.float16))


def test_float16_conversion_of_every_value() -> None:
    """One row per half value times the identity-like single column: widening and narrowing of all 65,536 halves."""
    q = QuantizedLinear(codes=np.zeros((1, 2, 1, 1), np.uint8), scales=np.full((1, 2, 2), 0.5, np.float32))
    x = np.zeros((65536, 2), np.uint16).view(np.float16)
    x[:, 0] = np.arange(65536, dtype=np.uint16).view(np.float16)
    y = session(build(pack(q), half=True, shape=("rows", None)), kernel="exact").run(None, {"x": x})[0][:, 0]
    finite = np.isfinite(x[:, 0])
    np.testing.assert_array_equal(y[finite], x[finite, 0])  # U = W = 0.5: y_re = x_re
    assert np.isnan(y[~finite]).all()


def test_config_entries_choose_the_kernel() -> None:
    q = layer()
    x = np.random.default_rng(4).standard_normal((1, 4, 140)).astype(np.float32)
    model = build(pack(q))
    reference = oracle.layer(x, q)
    assert oracle.relative(session(model, kernel="exact").run(None, {"x": x})[0], reference) < 1e-5
    assert 1e-4 < oracle.relative(session(model, kernel="lut").run(None, {"x": x})[0], reference) < 0.015
    for entries in ({"kernel": "fastest"}, {"isa": "doesnotexist"}):
        with pytest.raises(Exception, match=r"layers\.0\.q_proj.*(fastest|doesnotexist)"):
            session(model, **entries)


HOSTILE = [
    ({"attributes": {"K": None}}, "attribute K"),
    ({"attributes": {"stages": 0}}, "stages"),
    ({"attributes": {"stages": 5}}, "stages"),
    ({"attributes": {"stages": 3}}, "packed: expected"),
    ({"attributes": {"K": -140}}, "K: expected"),
    ({"attributes": {"K": 2**62}}, "K: expected"),
    ({"attributes": {"N": 2**31 - 2}}, "N: expected"),
    ({"attributes": {"N": 1 << 20}}, "packed: expected"),
    ({"attributes": {"layout_version": 7}}, "layout_version"),
    ({"attributes": {"scale_scope": 2}}, "scale_scope"),
    ({"tensors": {"packed": np.zeros(5, np.uint8)}}, "packed: expected"),
    ({"tensors": {"packed": np.zeros(0, np.uint8)}}, "packed: expected"),
    ({"tensors": {"scales": np.ones((1, 2, 2), np.float32)}}, "scales: expected"),
    ({"tensors": {"scales": np.full((2, 2, 2), np.nan, np.float32)}}, "scales: expected finite"),
    ({"tensors": {"row_multiplier": np.ones(85, np.float32)}}, "row_multiplier: expected 86"),
    ({"tensors": {"col_multiplier": np.ones(1, np.float32)}}, "col_multiplier: expected 140"),
    ({"tensors": {"bias": np.ones(1, np.float32)}}, "bias: expected 86"),
    ({"tensors": {"bias": np.ones(0, np.float32)}}, "bias: expected 86 values, got an empty tensor"),
    ({"tensors": {"row_multiplier": np.ones(0, np.float32)}}, "row_multiplier: expected 86 values, got an empty tensor"),
    ({"tensors": {"col_multiplier": np.ones(0, np.float32)}}, "col_multiplier: expected 140 values, got an empty tensor"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
@pytest.mark.parametrize("as_input", [False, True])
def test_hostile_models_are_refused(change: dict[str, dict[str, object]], message: str, as_input: bool) -> None:
    """Contradictions raise with the node's name, whether the operands are constant (at load) or not (at run)."""
    p = pack(layer())
    free = tuple({"packed", "scales", *change.get("tensors", {})}) if as_input else ()
    model = build(p, free=free, **change)  # type: ignore[arg-type]
    feeds = {"packed": p.packed, "scales": p.scales} | change.get("tensors", {})  # type: ignore[operator]
    with pytest.raises(Exception, match=rf"layers\.0\.q_proj.*{message}"):
        session(model).run(None, {"x": np.zeros((1, 1, 140), np.float32)} | {name: feeds[name] for name in free})


def test_wrong_types_and_shapes_of_x() -> None:
    p = pack(layer())
    with pytest.raises(Exception, match=r"expected shape \[\.\.\., K=140\]"):
        session(build(p, shape=("a", "b", "c"))).run(None, {"x": np.zeros((1, 1, 139), np.float32)})
    with pytest.raises(Exception, match=r"expected shape \[\.\.\., K=140\]"):
        session(build(p, shape=())).run(None, {"x": np.array(1, np.float32)})
    for wrong in ({"packed": p.packed.astype(np.int8)}, {"scales": p.scales.astype(np.float64)}):
        with pytest.raises(Exception, match=r"Fairy2iMatMul|ype"):
            session(build(p, tensors=wrong))  # type: ignore[arg-type]


def test_weights_may_be_graph_inputs() -> None:
    q = layer(multipliers=True)
    p = pack(q)
    bias = np.arange(86, dtype=np.float32)
    x = np.random.default_rng(5).standard_normal((1, 2, 140)).astype(np.float32)
    feeds = {"packed": p.packed, "scales": p.scales, "bias": bias, "row_multiplier": p.row_multiplier}
    y = session(build(p, bias=bias, free=tuple(feeds)), kernel="exact").run(None, {"x": x} | feeds)[0]
    assert oracle.relative(y, oracle.layer(x, q, bias)) < 1e-5


def test_weights_of_an_outer_graph() -> None:
    """Initializers of the enclosing graph, used inside an If branch, are not constants of the node."""
    q = layer()
    p = pack(q)
    inner = build(p).graph.node[0]
    branch = helper.make_graph([inner], "then", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    zero = helper.make_node("Mul", ["x", "zero"], ["y0"])
    other = helper.make_graph([zero], "else", [], [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 140]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(p.packed, "packed"),
            numpy_helper.from_array(p.scales, "scales"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = np.random.default_rng(6).standard_normal((3, 140)).astype(np.float32)
    y = session(model, kernel="exact").run(None, {"x": x, "condition": np.array(True)})[0]
    assert oracle.relative(y, oracle.layer(x, q)) < 1e-5


def test_one_session_runs_concurrently() -> None:
    q = layer(n=200, m=200)
    shared = session(build(pack(q)))
    xs = [np.random.default_rng(i).standard_normal((1, 1 + i % 5, 400)).astype(np.float32) for i in range(8)]
    alone = [shared.run(None, {"x": x})[0] for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(shared.run(None, {"x": xs[i]})[0], alone[i]):
                wrong.append(i)

    in_threads(8, work)
    assert not wrong


def test_registration_is_idempotent_and_sessions_are_independent() -> None:
    options = ort.SessionOptions()
    register(options)
    register(options)
    model = build(pack(layer())).SerializeToString()
    x = np.ones((1, 1, 140), np.float32)
    first = ort.InferenceSession(model, options)
    second = ort.InferenceSession(model, options)
    y = first.run(None, {"x": x})[0]
    del first
    np.testing.assert_array_equal(second.run(None, {"x": x})[0], y)


MEMORY_SCRIPT = """
import sys
import numpy as np, onnxruntime as ort
from fairy2i_runtime import register

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

options = ort.SessionOptions()
options.intra_op_num_threads = 1
register(options)
small = ort.InferenceSession(sys.argv[1], options)
small.run(None, {"x": np.ones((1, 1, int(sys.argv[3])), np.float32)})
before = anonymous()
big = ort.InferenceSession(sys.argv[2], options)
big.run(None, {"x": np.ones((1, 1, int(sys.argv[3])), np.float32)})
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_weights_stay_in_the_mapped_file(tmp_path: Path) -> None:
    """32 MiB of external weights are executed where they are mapped: private memory grows by far less."""
    k, paths = 8192, []
    for name, n in (("small", 64), ("big", 16384)):
        size = packed_size(n // 2, k // 2, 2)
        p = PackedLinear(
            packed=np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8),
            scales=np.ones((2, 2, 2), np.float32), n=n // 2, m=k // 2, stages=2,
        )  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(build(p), path, save_as_external_data=True, location=f"{name}.data", size_threshold=16)
        assert (tmp_path / f"{name}.data").stat().st_size >= size
        paths.append(str(path))
    command = [sys.executable, "-c", MEMORY_SCRIPT, *paths, str(k)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 8 << 20, f"private memory grew by {grown / 2**20:.1f} MiB"


def test_exported_symbols_are_the_documented_ones() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    with open(library_path(), "rb") as file:
        elf = elffile.ELFFile(file)
        names = {
            s.name
            for s in elf.get_section_by_name(".dynsym").iter_symbols()
            if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] == "STB_GLOBAL"
        }
        needed = {t.needed for t in elf.get_section_by_name(".dynamic").iter_tags() if t.entry.d_tag == "DT_NEEDED"}
        soname = [t.soname for t in elf.get_section_by_name(".dynamic").iter_tags() if t.entry.d_tag == "DT_SONAME"]
    header = (Path(library_path()).with_name("fairy2i.h")).read_text()
    declared = set(re.findall(r"\b(f2i_\w+)\(", header))
    assert names == {"RegisterCustomOps", "Fairy2i_RegisterCustomOps"} | declared
    assert needed <= {"libc.so.6", "libm.so.6"}
    assert soname == ["libfairy2i_ops.so"]
