"""Exported graphs with nodes of several layers: where they are, what they give, who reads them, and damaged ones."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fairy2i_runtime
from architecture_helpers import random_ids, save_tiny, stepwise_logits
from export_helpers import plain_session
from fairy2i_export import export, pack, quantize
from fairy2i_export.codes.layout import LAYOUT_CONJUGATE
from fairy2i_export.codes.strategies.ifairy import quantize_conjugate
from fairy2i_export.compile import prepare
from fairy2i_export.compile.plan import Plan, make_plan
from fairy2i_export.errors import FormatError
from fairy2i_export.onnx_graph import decoder_graph
from fairy2i_export.onnx_graph.formats import linear_node
from fairy2i_export.onnx_graph.function import matmul_function
from fairy2i_export.onnx_graph.operator import DOMAIN, INPUTS, OP_NAME, OP_NAMES, OPSET, input_names
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_runtime.engine.graph.call import GraphError
from fairy2i_runtime.engine.graph.check import check_graph
from ifairy_models import checkpoint

QKV = "model.layers.{}.self_attn.q_proj+k_proj+v_proj"
GATE_UP = "model.layers.{}.mlp.gate_proj+up_proj"
MIXED_STAGES = "stages that differ"
# model type or iFairy's, settings of the model, of the export -> nodes of 1, 2 and 3 layers
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int, int]]] = {
    "llama": ("llama", {}, {}, (5, 2, 2)),
    "biases, multipliers": ("llama", {"attention_bias": True, "mlp_bias": True}, {"row_multiplier": "rms"}, (5, 2, 2)),
    "three stages": ("qwen3", {}, {"stages": 3}, (5, 2, 2)),
    MIXED_STAGES: ("llama", {}, {}, (5, 2, 2)),
    "k dense": ("llama", {}, {"exclude": ["*.k_proj"]}, (9, 2, 0)),
    "fused projections": ("phi3", {}, {}, (9, 0, 0)),
    "other nodes": ("llama", {}, {"backend": "matmulnbits"}, (0, 0, 0)),
    "dense": ("llama", {}, {"backend": "dense"}, (0, 0, 0)),
    "without U": ("ifairy", {}, {"profile": "fp32"}, (4, 2, 2)),
}
JOINT = [name for name, form in FORMS.items() if form[3][1]]


def mixed_plan(*arguments: Any) -> Plan:
    """Layers of 1, 2, 3, 4, 1, ... stages."""
    made = make_plan(*arguments)
    return made.with_stages({linear.name: 1 + index % 4 for index, linear in enumerate(made.rewritten)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Gives the folder of a form, or one with a node for each layer."""
    root, made = tmp_path_factory.mktemp("joint"), {}

    def give(name: str, joint: bool = True) -> Path:
        kind, settings, options, _ = FORMS[name]
        source = root / name
        if not source.is_dir():
            checkpoint(source, "B_gqa") if kind == "ifairy" else save_tiny(source, kind, **settings)
        if (name, joint) not in made:
            with pytest.MonkeyPatch.context() as patch:
                if name == MIXED_STAGES:
                    patch.setattr(prepare, "make_plan", mixed_plan)
                if not joint:
                    patch.setattr(
                        decoder_graph,
                        "linear_nodes",
                        lambda g, w, linears, x: [linear_node(g, w, one, x) for one in linears],
                    )
                made[name, joint] = export(source, root / f"{name} {joint}", embedding="float32", **options).path
        return made[name, joint]

    return give


def graph_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


@pytest.mark.parametrize("name", FORMS)
def test_where_they_are(folders: Callable[..., Path], name: str) -> None:
    model = graph_of(folders(name))
    found = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    assert tuple(found[operator] for operator in OP_NAMES) == FORMS[name][3]
    assert {function.name for function in model.functions} == {*found, *([OP_NAME] if found else [])}
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    if found[OP_NAMES[2]]:
        node = nodes[QKV.format(1)]
        assert list(node.output) == [f"model.layers.1.self_attn.{part}_proj/output" for part in "qkv"]
        assert [name for name in node.input if name.endswith("packed")] == [
            f"model.layers.1.self_attn.{part}_proj.packed" for part in "qkv"
        ]
        assert len(node.input) == 16
    if found[OP_NAMES[1]]:
        assert len(nodes[GATE_UP.format(0)].input) == 11
    onnx.checker.check_model(str(folders(name) / "model.onnx"), full_check=True)


def logits(folder: Path, **entries: str) -> npt.NDArray[np.float32]:
    """Of three texts, prompts at once and then token by token."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(f"fairy2i.{key}", value)
    fairy2i_runtime.register(options)
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    ids = random_ids(3)
    return stepwise_logits(session, ids, np.ones_like(ids), 12)


@pytest.mark.parametrize("kernel", ["exact", "lut", "dot"])
@pytest.mark.parametrize("name", JOINT)
def test_logits_are_those_of_nodes_of_one_layer(folders: Callable[..., Path], name: str, kernel: str) -> None:
    joint, apart = folders(name), folders(name, False)
    assert (joint / "model.onnx.data").read_bytes() == (apart / "model.onnx.data").read_bytes()
    found, expected = logits(joint, kernel=kernel), logits(apart, kernel=kernel)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", JOINT)
def test_bodies_give_the_same_without_the_library(folders: Callable[..., Path], name: str) -> None:
    ids = random_ids(2, 14)
    sessions = [plain_session(folders(name, joint)) for joint in (True, False)]
    found, expected = (stepwise_logits(session, ids, np.ones_like(ids), 12) for session in sessions)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", JOINT)
def test_readers_find_the_same_layers(folders: Callable[..., Path], name: str) -> None:
    joint, apart = (read_nodes(folders(name, form) / "model.onnx") for form in (True, False))
    assert [node.name for node in joint] == [node.name for node in apart]
    for one, other in zip(joint, apart, strict=True):
        assert (one.x, one.y, one.operands.stages, one.operands.n) == (
            other.x,
            other.y,
            other.operands.stages,
            other.operands.n,
        )
        np.testing.assert_array_equal(one.operands.packed, other.operands.packed)
        np.testing.assert_array_equal(one.operands.scales, other.operands.scales)
        assert (one.bias is None) == (other.bias is None)


@pytest.mark.parametrize("joint", [True, False])
def test_codes_of_either_form_can_be_used_again(folders: Callable[..., Path], tmp_path: Path, joint: bool) -> None:
    name = "biases, multipliers"
    source = folders(name).parent / name
    again = export(source, tmp_path / "again", codes_from=folders(name, joint), embedding="float32").path
    assert graph_of(again).graph == graph_of(folders(name)).graph
    assert (again / "model.onnx.data").read_bytes() == (folders(name) / "model.onnx.data").read_bytes()


def test_the_rewriter_leaves_them_as_they_are(folders: Callable[..., Path], tmp_path: Path) -> None:
    """And completes what is missing: inputs that were left off at the end, the definition."""
    source, model = folders("llama"), onnx.load(folders("llama") / "model.onnx")
    missing = [function for function in model.functions if function.name != "Fairy2iMatMul2"]
    del model.functions[:]
    model.functions.extend(missing)
    for node in model.graph.node:
        if node.op_type == "Fairy2iMatMul2":
            del node.input[-3:]
    (tmp_path / "edited").mkdir()
    onnx.save(model, tmp_path / "edited" / "model.onnx")
    report = rewrite_onnx(tmp_path / "edited" / "model.onnx", tmp_path / "out", include=["*.k_proj"])
    assert (report.already, len(report.rewritten), report.passes["define"]) == (15, 0, 3)
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    original = graph_of(source)
    assert [list(node.input) for node in written.graph.node] == [list(node.input) for node in original.graph.node]
    assert {function.name for function in written.functions} == set(OP_NAMES)


OPTIONAL = INPUTS[3:]


def one_node(layers: int, kind: Any, given: list[tuple[str, ...]], layout: int) -> tuple[onnx.ModelProto, Any, list[Any]]:
    """A model of one node, an input, and the outputs that it has to give."""
    rng, k, count = np.random.default_rng(layers), 70, 3
    x = rng.standard_normal((2, count, k)).astype(kind)
    tensors, expected, attributes = {}, [], {"K": k, "layout_version": layout, "scale_scope": 0}
    for layer in range(layers):
        n, stages = 6 + 60 * layer, 1 if layout == LAYOUT_CONJUGATE else layer + 1
        weight = rng.standard_normal((n, k // 2 if layout == LAYOUT_CONJUGATE else k))
        q = quantize_conjugate(weight, "fp32") if layout == LAYOUT_CONJUGATE else quantize(weight, stages)
        p = pack(q, layout)
        sizes = {"bias": n, "row_multiplier": n, "col_multiplier": k}
        extra = {
            name: rng.uniform(0.5, 2, sizes[name]).astype(kind if name == "bias" else np.float32) for name in given[layer]
        }
        tensors |= {f"{name}_{layer}": array for name, array in {"packed": p.packed, "scales": p.scales, **extra}.items()}
        attributes |= {f"N_{layer}": n, f"stages_{layer}": stages}
        y = (x.astype(np.float64) * extra.get("col_multiplier", 1)) @ q.dequantize("none").astype(np.float64).T
        expected.append(y * extra.get("row_multiplier", 1) + extra.get("bias", np.float64(0)))
    if layout == LAYOUT_CONJUGATE:
        attributes["activation_bits"] = 0
    inputs = ["X", *(name if name in tensors else "" for name in input_names(layers)[1:])]
    outputs = [f"Y_{layer}" for layer in range(layers)]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node(OP_NAMES[layers - 1], inputs, outputs, domain=DOMAIN, **attributes)],
        "one_node",
        [helper.make_tensor_value_info("X", element, ["batch", "sequence", k])],
        [
            helper.make_tensor_value_info(name, element, ["batch", "sequence", y.shape[-1]])
            for name, y in zip(outputs, expected, strict=True)
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    rounding = layout == LAYOUT_CONJUGATE
    functions = [ir.serde.serialize_function(matmul_function(layers=count, rounding=rounding)) for count in (1, layers)]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8), x, expected


@pytest.mark.parametrize("layout", [1, LAYOUT_CONJUGATE])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(
    "given", [[(), (), ()], [OPTIONAL, OPTIONAL, OPTIONAL], [("bias",), ("row_multiplier",), ("col_multiplier",)]], ids=str
)
@pytest.mark.parametrize("layers", [2, 3])
def test_the_body_is_a_node_for_each_layer(layers: int, given: list[tuple[str, ...]], kind: Any, layout: int) -> None:
    model, x, expected = one_node(layers, kind, given, layout)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found in (session.run(None, {"X": x}), ReferenceEvaluator(model).run(None, {"X": x})):
        assert [y.dtype for y in found] == [kind] * layers
        for y, right in zip(found, expected, strict=True):
            assert np.abs(y - right).max() <= (2e-6 if kind == np.float32 else 2e-3) * np.abs(right).max()


def joint(model: onnx.ModelProto, operator: str = "Fairy2iMatMul3") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def with_input(index: int, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        joint(model).input[index] = name

    return change


def with_number(name: str, value: int | None) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        found = next(entry for entry in joint(model).attribute if entry.name == name)
        if value is None:
            joint(model).attribute.remove(found)
        else:
            found.i = value

    return change


def without_output(model: onnx.ModelProto) -> None:
    """Nobody makes v, and what read it reads k."""
    gone, other = joint(model).output[2], joint(model).output[1]
    del joint(model).output[2:]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other if name == gone else name


def with_short_inputs(model: onnx.ModelProto) -> None:
    del joint(model).input[12:]


# change -> what the runtime's reader says of it, what the exporter's does
DAMAGED: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    "no codes of k": (with_input(6, ""), "input 6 to be an initializer", "expected packed_1 to be an initializer"),
    "no scales of v": (with_input(12, ""), "input 12 to be an initializer", "expected scales_2 to be an initializer"),
    "codes that are computed": (with_input(1, "input_ids"), "input 1 to be an initializer", "expected packed_0 to be an"),
    "inputs left off": (with_short_inputs, "16 to 16 inputs, found 12", "expected scales_2 to be an initializer"),
    "two outputs": (without_output, "3 outputs, found", "expected a named input X and 3 named outputs, found outputs"),
    "no N of k": (with_number("N_1", None), "an attribute N_1", "expected an attribute N_1"),
    "no stages of q": (with_number("stages_0", None), "an attribute stages_0", "expected an attribute stages_0"),
    "another N of k": (with_number("N_1", 512), "input 1", "packed: expected"),
    "another K": (with_number("K", 512), "input 0", "packed: expected"),
    "more stages of v": (with_number("stages_2", 4), "input 12 of type 1", "expected|shape|stages"),
    "without U": (with_number("layout_version", 2), "activation_bits", "expected an attribute activation_bits"),
    "scales of tiles": (with_number("scale_scope", 1), "scale_scope", "scale_scope|scope"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_nodes_are_one_error(folders: Callable[..., Path], tmp_path: Path, name: str) -> None:
    from fairy2i_export.check.layer_facts import layer_facts

    folder, (change, runtimes, exporters) = folders("llama"), DAMAGED[name]
    model = graph_of(folder)
    check_graph(model.SerializeToString(), folder, 64)
    change(model)
    with pytest.raises(GraphError, match=runtimes) as caught:
        check_graph(model.SerializeToString(), folder, 64)
    assert "\n" not in str(caught.value)
    assert "q_proj" in str(caught.value) or "attention" in str(caught.value)
    shutil.copy(folder / "model.onnx.data", tmp_path)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FormatError, match=exporters) as caught_too:
        list(layer_facts(read_nodes(tmp_path / "model.onnx")))
    assert "\n" not in str(caught_too.value)
    assert "_proj" in str(caught_too.value)
