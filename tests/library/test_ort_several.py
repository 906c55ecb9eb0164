"""Fairy2iMatMul2 and Fairy2iMatMul3 inside onnxruntime: several layers that read the same x, held against a node for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_ort_op import DOMAIN, INPUTS, layer, session

import oracle
from conftest import in_threads
from fairy2i_export import PackedLinear, pack
from fairy2i_runtime import core

K = 140
EMPTY = np.zeros(0, np.float32)


@dataclass
class Layer:
    """One of the layers of a node.

    Attributes:
        packed: of N outputs and K inputs.
        bias: [N] or None.
    """

    packed: PackedLinear
    bias: npt.NDArray[np.floating] | None = None

    @property
    def n(self) -> int:
        return 2 * self.packed.n

    def operands(self) -> dict[str, npt.NDArray[np.generic] | None]:
        p = self.packed
        values = (p.packed, p.scales, self.bias, p.row_multiplier, p.col_multiplier)
        return dict(zip(INPUTS, values, strict=True))


def three_layers(rows_of_q: int = 43, half: bool = False) -> list[Layer]:
    """Of different sizes and stages; the first with everything, the others without this or that."""
    rng = np.random.default_rng(7)
    kind = np.float16 if half else np.float32
    return [
        Layer(pack(layer(rows_of_q, seed=1, multipliers=True)), rng.standard_normal(2 * rows_of_q).astype(kind)),
        Layer(pack(layer(16, stages=1, seed=2))),
        Layer(pack(layer(33, stages=4, seed=3)), rng.standard_normal(66).astype(kind)),
    ]


def conjugate_layers() -> list[Layer]:
    """Layers without U: random bytes are one."""
    rng = np.random.default_rng(8)
    found = []
    for n in (21, 64, 3):
        size = core.binding()[0].new("size_t *")
        assert core.binding()[1].f2i_layout_size(2, K, 2 * n, 1, size, core.binding()[0].NULL) == 0
        scales = np.tile(rng.uniform(0.2, 1, 2).astype(np.float32), 2).reshape(1, 2, 2)
        packed = rng.integers(0, 256, size[0], dtype=np.uint8)
        found.append(Layer(PackedLinear(packed=packed, scales=scales, n=n, m=K // 2, stages=1)))
    return found


def build(
    layers: list[Layer],
    *,
    half: bool = False,
    attributes: dict[str, object] | None = None,
    tensors: dict[str, npt.NDArray[np.generic] | None] | None = None,
    free: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("y_0", "y_1", "y_2"),
    alone: bool = True,
    shape: tuple[object, ...] = ("batch", "seq", K),
) -> onnx.ModelProto:
    """A model with one node of all layers, y_0 and so on, and a node for each of them on the same operands, z_0 and so on.

    Args:
        layers: two or three.
        half: X, biases and outputs are float16.
        attributes: other values of its attributes; None leaves one out.
        tensors: other operands, by name and number of the layer ("bias_1"); None leaves one out.
        free: operands that are graph inputs instead of initializers.
        outputs: names of the outputs of the one node.
        alone: whether there are nodes for each layer.
        shape: of x.
    """
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    given = {"K": K, "layout_version": 1, "scale_scope": 0}
    for i, one in enumerate(layers):
        given |= {f"N_{i}": one.n, f"stages_{i}": one.packed.stages}
    wanted: dict[str, object] = given | (attributes or {})
    values = {f"{name}_{i}": value for i, one in enumerate(layers) for name, value in one.operands().items()} | (
        tensors or {}
    )
    names = {name: name if value is not None else "" for name, value in values.items()}
    nodes = [
        helper.make_node(
            f"Fairy2iMatMul{len(layers)}", ["x", *names.values()], outputs[: len(layers)], name="layers.0.q_proj+k_proj",
            domain=DOMAIN, **{key: value for key, value in wanted.items() if value is not None},
        )
    ]  # fmt: skip
    common = ("K", "layout_version", "scale_scope", "activation_bits")
    for i, one in enumerate(layers if alone else ()):
        inputs = ["x", *(names[f"{name}_{i}"] for name in INPUTS)]
        own = {name: wanted[name] for name in common if name in wanted} | {"N": one.n, "stages": one.packed.stages}
        nodes.append(helper.make_node("Fairy2iMatMul", inputs, [f"z_{i}"], domain=DOMAIN, **own))
    graph_inputs = [helper.make_tensor_value_info("x", kind, shape)]
    for name in free:
        array = values[name]
        assert array is not None
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph_inputs.append(helper.make_tensor_value_info(name, element, ["any"] * array.ndim))
    graph = helper.make_graph(
        nodes,
        "g",
        graph_inputs,
        [helper.make_tensor_value_info(name, kind, None) for node in nodes for name in node.output if name],
        [numpy_helper.from_array(array, name) for name, array in values.items() if array is not None and name not in free],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def random_x(rows: int, half: bool = False) -> npt.NDArray[np.floating]:
    return np.random.default_rng(rows).standard_normal((1, rows, K)).astype(np.float16 if half else np.float32)


def check_equal(found: list[npt.NDArray[np.floating]], layers: list[Layer], rows: int) -> None:
    """The outputs of the one node, then those of a node for each layer."""
    assert len(found) == 2 * len(layers)
    for one, joined, alone in zip(layers, found, found[len(layers) :], strict=False):
        assert joined.shape == (1, rows, one.n)
        assert joined.dtype == alone.dtype
        np.testing.assert_array_equal(joined.view(np.uint8), alone.view(np.uint8))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows_of_q", [43, 1000])  # the larger one is worth several threads
@pytest.mark.parametrize("kernel", ["lut", "exact", "dot", "auto"])
def test_equals_a_node_for_each_layer(kernel: str, rows_of_q: int, count: int, half: bool) -> None:
    layers = three_layers(rows_of_q, half)[:count]
    model = build(layers, half=half)
    for threads in (1, 2, 3):
        one = session(model, threads, kernel=kernel)
        for rows in (0, 1, 2, 5, 130):
            check_equal(one.run(None, {"x": random_x(rows, half)}), layers, rows)


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("kernel", ["lut", "exact", "dot"])
def test_layers_without_u(kernel: str, bits: int) -> None:
    layers = conjugate_layers()
    model = build(layers, attributes={"layout_version": 2, "activation_bits": bits})
    for rows in (1, 3):
        check_equal(session(model, kernel=kernel).run(None, {"x": random_x(rows)}), layers, rows)


def test_is_the_product() -> None:
    """Not only equal to the other operator, but right."""
    quantized = [layer(43, seed=1, multipliers=True), layer(16, stages=1, seed=2)]
    x = random_x(1)
    found = session(build([Layer(pack(q)) for q in quantized]), kernel="exact").run(None, {"x": x})
    for q, y in zip(quantized, found, strict=False):
        assert oracle.relative(y, oracle.layer(x, q)) < 1e-5


@pytest.mark.parametrize("half", [False, True])
def test_output_shapes_and_types_are_inferred(half: bool) -> None:
    layers = three_layers(half=half)
    described = session(build(layers, half=half)).get_outputs()
    assert [output.shape for output in described[:3]] == [["batch", "seq", one.n] for one in layers]
    assert {output.type for output in described} == {"tensor(float16)" if half else "tensor(float)"}


@pytest.mark.parametrize("half", [False, True])
def test_operands_may_be_graph_inputs(half: bool) -> None:
    """Those of one layer, or one operand of it, while the others are constant."""
    layers = three_layers(half=half)
    for free in (
        ("packed_1", "scales_1"),
        ("packed_0", "scales_0", "bias_0", "row_multiplier_0", "col_multiplier_0"),
        ("bias_2",),
        ("col_multiplier_0", "packed_2"),
    ):
        feeds = {name: layers[int(name[-1])].operands()[name[:-2]] for name in free}
        one = session(build(layers, half=half, free=free))
        for rows in (1, 4):
            check_equal(one.run(None, {"x": random_x(rows, half), **feeds}), layers, rows)


def test_one_session_runs_concurrently() -> None:
    layers = three_layers(600)
    shared = session(build(layers))
    xs = [random_x(1 + i % 3) * (i + 1) for i in range(6)]
    alone = [shared.run(None, {"x": x}) for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            found = shared.run(None, {"x": xs[i]})
            if not all(map(np.array_equal, found, alone[i])):
                wrong.append(i)

    in_threads(6, work)
    assert not wrong


HOSTILE = [
    ({"attributes": {"K": None}}, ": attribute K: expected an integer, found none"),
    ({"attributes": {"N_1": None}}, ": attribute N_1: expected an integer, found none"),
    ({"attributes": {"stages_2": None}}, ": attribute stages_2: expected an integer, found none"),
    ({"attributes": {"layout_version": 2}}, ": attribute activation_bits"),
    ({"attributes": {"activation_bits": 8}}, ", layer 0: activation_bits: expected 0"),
    ({"attributes": {"K": 2**62}}, ", layer 0: K: expected"),
    ({"attributes": {"N_1": 31}}, ", layer 1: N: expected"),
    ({"attributes": {"N_1": 1 << 20}}, ", layer 1: packed: expected"),
    ({"attributes": {"stages_1": 5}}, ", layer 1: stages: expected"),
    ({"attributes": {"stages_1": 2}}, ", layer 1: packed: expected"),
    ({"attributes": {"layout_version": 7}}, ", layer 0: layout_version"),
    ({"attributes": {"scale_scope": 2}}, ", layer [0-2]: scale_scope"),
    ({"tensors": {"packed_1": np.zeros(5, np.uint8)}}, r", layer 1: packed: expected \d+ bytes .* got 5"),
    ({"tensors": {"packed_2": np.zeros(0, np.uint8)}}, ", layer 2: packed: expected"),
    ({"tensors": {"scales_1": np.ones((2, 2, 2), np.float32)}}, ", layer 1: scales: expected"),
    ({"tensors": {"scales_2": np.full((4, 2, 2), np.nan, np.float32)}}, ", layer 2: scales: expected finite"),
    ({"tensors": {"row_multiplier_1": np.ones(31, np.float32)}}, ", layer 1: row_multiplier: expected 32 values, got 31"),
    ({"tensors": {"col_multiplier_2": np.ones(1, np.float32)}}, ", layer 2: col_multiplier: expected 140 values, got 1"),
    ({"tensors": {"bias_1": np.ones(1, np.float32)}}, ", layer 1: bias: expected 32 values, got 1"),
    ({"tensors": {"bias_2": EMPTY}}, ", layer 2: bias: expected 66 values, got an empty tensor"),
    ({"tensors": {"row_multiplier_0": EMPTY}}, ", layer 0: row_multiplier: expected 86 values, got an empty tensor"),
    ({"tensors": {"col_multiplier_1": EMPTY}}, ", layer 1: col_multiplier: expected 140 values, got an empty tensor"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
@pytest.mark.parametrize("as_input", [False, True])
def test_wrong_operands_are_refused(change: dict[str, dict[str, object]], message: str, as_input: bool) -> None:
    """With the names of operator and node and the number of the layer, at load or, where operands are inputs, when run."""
    layers = three_layers()
    given = {f"{name}_{i}": value for i, one in enumerate(layers) for name, value in one.operands().items()}
    given |= change.get("tensors", {})  # type: ignore[arg-type]
    free = tuple(
        {*(f"{name}_{i}" for i in range(3) for name in ("packed", "scales")), *change.get("tensors", {})} if as_input else ()
    )
    model = build(layers, free=free, alone=False, **change)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=rf"Fairy2iMatMul3 node 'layers\.0\.q_proj\+k_proj'{message}"):
        session(model).run(None, {"x": random_x(1)} | {name: given[name] for name in free})


def test_wrong_x_and_types_are_refused() -> None:
    layers = three_layers()
    with pytest.raises(
        Exception,
        match=r"Fairy2iMatMul3 node .*k_proj': X: expected shape \[\.\.\., K=140\], got rank 3 with last dimension 139",
    ):
        session(build(layers, shape=("a", "b", "c"), alone=False)).run(None, {"x": np.zeros((1, 1, 139), np.float32)})
    with pytest.raises(Exception, match=r"Fairy2iMatMul3 node .*k_proj': X: expected shape \[\.\.\., K=140\], got rank 0"):
        session(build(layers, shape=(), alone=False)).run(None, {"x": np.array(1, np.float32)})
    wrong: dict[str, npt.NDArray[np.generic]] = {"packed_1": np.zeros(512, np.int8), "scales_2": np.ones((4, 2, 2))}
    for name, value in wrong.items():
        with pytest.raises(Exception, match=r"Fairy2iMatMul3|ype"):
            session(build(layers, tensors={name: value}, alone=False))


def test_what_is_required_has_a_name() -> None:
    """Otherwise onnxruntime refuses the model: the operator need not look."""
    layers = three_layers()
    for name, place in (("packed_1", "input 6"), ("scales_2", "input 12")):
        with pytest.raises(Exception, match=f"{place} is marked single but has an empty string"):
            session(build(layers, tensors={name: None}, alone=False))
    with pytest.raises(Exception, match="output 1 is marked single but has an empty string"):
        session(build(layers, outputs=("y_0", "", "y_2"), alone=False))
