"""What a rewriting does not rewrite is carried over as it is, whatever it is and wherever its data lie, or refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairy2i_export.errors import ModelError
from fairy2i_export.rewrite.opening import normal, sparse
from fairy2i_export.rewrite.opening.walk import spots
from rewrite_helpers import Array, rewrite_onnx, run

K, N = 32, 16
FLOAT = TensorProto.FLOAT
rng = np.random.default_rng(7)
X = rng.standard_normal((3, K)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"node_{outputs.split()[0]}", **attributes)


def value(name: str, shape: list[Any] | None = None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """X [rows, K] -> y [rows, N], a product that is rewritten, and z, which ``nodes`` make of x and p [rows, K]."""
    w = rng.standard_normal((K, N)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), *nodes],
        "g",
        [value("x", ["rows", K]), *(inputs or [])],
        [value("y", ["rows", N]), value("z")],
        [numpy_helper.from_array(w, "w"), *(initializers or [])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions or [])


def sparse_of(array: Array, name: str, *, by_axis: bool = False) -> onnx.SparseTensorProto:
    """Indices into the flat tensor, or a row of them for every value."""
    proto = onnx.SparseTensorProto()
    proto.values.CopyFrom(numpy_helper.from_array(array[array != 0], name))
    indices = np.argwhere(array) if by_axis else np.flatnonzero(array)
    proto.indices.CopyFrom(numpy_helper.from_array(indices.astype(np.int64), f"{name}_indices"))
    proto.dims.extend(array.shape)
    return proto


def few(*shape: int, dtype: type = np.float32) -> Array:
    """Mostly zeros."""
    return np.where(rng.random(shape) < 0.3, rng.standard_normal(shape), 0).astype(dtype)


def sparse_constant(proto: onnx.SparseTensorProto, name: str) -> onnx.NodeProto:
    made = helper.make_node("Constant", [], [name], name=f"node_{name}")
    attribute = made.attribute.add()
    attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
    attribute.sparse_tensor.CopyFrom(proto)
    return made


def external(tensor: onnx.TensorProto, path: Path) -> onnx.TensorProto:
    """The same with its data at the end of a file."""
    data = numpy_helper.to_array(tensor).tobytes()
    with path.open("ab") as file:
        offset = file.tell()
        file.write(data)
    moved = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    moved.data_location = TensorProto.EXTERNAL
    for key, text in (("location", path.name), ("offset", str(offset)), ("length", str(len(data)))):
        entry = moved.external_data.add()
        entry.key, entry.value = key, text
    return moved


def function_of(nodes: list[onnx.NodeProto], name: str = "Shift") -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 18)])


def graph_of(
    nodes: list[onnx.NodeProto], output: str, initializers: list[onnx.TensorProto] | None = None
) -> onnx.GraphProto:
    return helper.make_graph(nodes, f"body_{output}", [], [value(output)], initializers or [])


def in_branches(body: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Z = what the body makes, where x has rows, else x."""
    other = graph_of([node("Identity", "x", "same")], "same")
    nodes = [
        node("Shape", "x", "shape", end=1),
        node("Squeeze", "shape", "rows"),
        node("Cast", "rows", "any", to=TensorProto.BOOL),
    ]
    return [*nodes, node("If", "any", "z", then_branch=body, else_branch=other)]


def same_z(source: Path, folder: Path, expected: onnx.ModelProto | None = None) -> None:
    """What is not quantized comes out to the bit; ``expected`` stands for a source that onnxruntime cannot run."""
    feeds = {"x": X}
    wanted = run(source if expected is None else expected, feeds)[1]
    for library in (True, False):
        np.testing.assert_array_equal(run(folder / "model.onnx", feeds, library=library)[1], wanted)
    assert wanted.std() > 0


# sparse tensors


def flat_initializer() -> onnx.ModelProto:
    model = model_of([node("Add", "x p", "z")])
    model.graph.sparse_initializer.append(sparse_of(few(K), "p"))
    return model


def indices_by_axis() -> onnx.ModelProto:
    model = model_of([node("MatMul", "x p", "z")])
    model.graph.sparse_initializer.append(sparse_of(few(K, K), "p", by_axis=True))
    return model


def constant_node() -> onnx.ModelProto:
    return model_of([sparse_constant(sparse_of(few(K, 7), ""), "p"), node("MatMul", "x p", "z")])


def half_floats() -> onnx.ModelProto:
    proto = sparse_of(few(K, dtype=np.float16), "p")
    model = model_of([node("Cast", "p", "wide", to=FLOAT), node("Add", "x wide", "z")])
    model.graph.sparse_initializer.append(proto)
    return model


def nothing_but_zeros() -> onnx.ModelProto:
    model = model_of([node("Sub", "x p", "z")])
    model.graph.sparse_initializer.append(sparse_of(np.zeros((3, K), np.float32), "p"))
    return model


def constant_in_a_branch() -> onnx.ModelProto:
    nodes = [sparse_constant(sparse_of(few(K), ""), "p"), node("Add", "x p", "sum")]
    return model_of(in_branches(graph_of(nodes, "sum")))


def constant_in_a_function() -> onnx.ModelProto:
    nodes = [sparse_constant(sparse_of(few(K), ""), "p"), node("Add", "a p", "b")]
    return model_of([node("Shift", "x", "z", domain="local")], functions=[function_of(nodes)])


SPARSE = [flat_initializer, indices_by_axis, constant_node, half_floats, nothing_but_zeros, constant_in_a_branch,
          constant_in_a_function]  # fmt: skip


@pytest.mark.parametrize("make", SPARSE)
def test_sparse_tensors_become_dense_ones(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", include=["product"])
    assert [x.node for x in report.rewritten] == ["product"]
    same_z(tmp_path / "m.onnx", tmp_path / "out")


def test_a_sparse_initializer_of_a_branch(tmp_path: Path) -> None:
    """ONNX Runtime does not read those; the expected values are those of the dense tensor."""
    array = few(K)
    model = model_of(in_branches(graph_of([node("Add", "x p", "sum")], "sum")))
    dense = model_of(in_branches(graph_of([node("Add", "x p", "sum")], "sum", [numpy_helper.from_array(array, "p")])))
    body = next(a.g for n in model.graph.node for a in n.attribute if a.name == "then_branch")
    body.sparse_initializer.append(sparse_of(array, "p"))
    onnx.save(model, tmp_path / "m.onnx")
    rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    same_z(tmp_path / "m.onnx", tmp_path / "out", dense)


def test_a_sparse_constant_that_is_an_output(tmp_path: Path) -> None:
    """ONNX Runtime gives a sparse tensor for those; here it is what ONNX says, a tensor."""
    array = few(3, K)
    onnx.save(model_of([sparse_constant(sparse_of(array, ""), "z")]), tmp_path / "m.onnx")
    rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    same_z(tmp_path / "m.onnx", tmp_path / "out", model_of([constant_of(numpy_helper.from_array(array), "z")]))


def test_a_sparse_weight_is_rewritten(tmp_path: Path) -> None:
    """With the codes of the dense one."""
    w = few(K, N)
    for name in ("sparse", "dense"):
        model = model_of([node("Relu", "x", "z")])
        del model.graph.initializer[:]
        if name == "sparse":
            model.graph.sparse_initializer.append(sparse_of(w, "w", by_axis=True))
        else:
            model.graph.initializer.append(numpy_helper.from_array(w, "w"))
        onnx.save(model, tmp_path / f"{name}.onnx")
        assert len(rewrite_onnx(tmp_path / f"{name}.onnx", tmp_path / name).rewritten) == 1
    outputs = [run(tmp_path / name / "model.onnx", {"x": X}, library=True)[0] for name in ("sparse", "dense")]
    np.testing.assert_array_equal(*outputs)


def outside(proto: onnx.SparseTensorProto) -> None:
    indices = numpy_helper.to_array(proto.indices).copy()
    indices[-1] = K
    proto.indices.CopyFrom(numpy_helper.from_array(indices))


def twice(proto: onnx.SparseTensorProto) -> None:
    indices = numpy_helper.to_array(proto.indices).copy()
    indices[0] = indices[1]
    proto.indices.CopyFrom(numpy_helper.from_array(indices))


def fewer_indices(proto: onnx.SparseTensorProto) -> None:
    proto.indices.CopyFrom(numpy_helper.from_array(np.zeros(2, np.int64)))


def too_large(proto: onnx.SparseTensorProto) -> None:
    proto.dims[:] = [1 << 20, 1 << 20]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (outside, "indices outside the shape [32]"),
        (twice, "two values at one index"),
        (fewer_indices, "indices of the shape [2]"),
        (too_large, "would take 4,398,046,511,104 bytes"),
    ],
)
def test_sparse_tensors_that_are_refused(damage: Callable[[Any], None], words: str, tmp_path: Path) -> None:
    model = flat_initializer()
    damage(model.graph.sparse_initializer[0])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="sparse tensor 'p'") as error:
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


# tensors in other files


def far_constant(data: Path) -> onnx.ModelProto:
    p = external(numpy_helper.from_array(few(3, K)), data)
    return model_of([constant_of(p, "p"), node("Add", "x p", "z")])


def constant_of(tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"node_{name}", value=tensor)


def far_constant_in_a_branch(data: Path) -> onnx.ModelProto:
    p = external(numpy_helper.from_array(few(400, K)), data)
    nodes = [constant_of(p, "p"), node("ReduceMax", "p", "top", keepdims=0), node("Add", "x top", "sum")]
    return model_of(in_branches(graph_of(nodes, "sum")))


def far_initializer_of_a_branch(data: Path) -> onnx.ModelProto:
    p = external(numpy_helper.from_array(few(3, K), "p"), data)
    return model_of(in_branches(graph_of([node("Add", "x p", "sum")], "sum", [p])))


def far_constant_in_a_function(data: Path) -> onnx.ModelProto:
    p = external(numpy_helper.from_array(few(3, K)), data)
    nodes = [constant_of(p, "p"), node("Add", "a p", "b")]
    return model_of([node("Shift", "x", "z", domain="local")], functions=[function_of(nodes)])


def far_constant_that_is_an_output(data: Path) -> onnx.ModelProto:
    return model_of([constant_of(external(numpy_helper.from_array(few(3, K)), data), "z")])


def far_attribute(data: Path) -> onnx.ModelProto:
    one = external(numpy_helper.from_array(np.array([2.5], np.float32)), data)
    nodes = [node("Shape", "x", "shape"), node("ConstantOfShape", "shape", "p", value=one), node("Mul", "x p", "z")]
    return model_of(nodes)


FAR = [far_constant, far_constant_in_a_branch, far_initializer_of_a_branch, far_constant_in_a_function,
       far_constant_that_is_an_output, far_attribute]  # fmt: skip


def inlined(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The same with all data in the file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for spot in spots(copy):
        if spot.kind == "TensorProto" and spot.message.data_location == TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(spot.message, str(folder))
            spot.message.ClearField("data_location")
            del spot.message.external_data[:]
    return copy


@pytest.mark.parametrize("make", FAR)
def test_tensors_in_other_files_come_along(make: Callable[[Path], onnx.ModelProto], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source, data = tmp_path / "source" / "m.onnx", tmp_path / "source" / "far.bin"
    model = make(data)
    source.write_bytes(model.SerializeToString())
    report = rewrite_onnx(source, tmp_path / "out")
    assert report.source_bytes == source.stat().st_size + data.stat().st_size
    expected = inlined(model, data.parent)
    same_z(source, tmp_path / "out", expected)

    before = report.source_sha256
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    assert rewrite_onnx(source, tmp_path / "out", force=True).source_sha256 != before
    data.write_bytes(data.read_bytes()[:-1])
    for dry_run in (True, False):
        with pytest.raises(ModelError, match=r"far\.bin has .* bytes, but tensor .* ends at byte"):
            rewrite_onnx(source, tmp_path / "none", dry_run=dry_run)
    data.unlink()
    for dry_run in (True, False):
        with pytest.raises(ModelError, match=r"its external data file far\.bin is missing"):
            rewrite_onnx(source, tmp_path / "none", dry_run=dry_run)


def test_a_weight_in_a_far_constant_is_rewritten(tmp_path: Path) -> None:
    w = rng.standard_normal((K, N)).astype(np.float32)
    model = model_of(
        [constant_of(external(numpy_helper.from_array(w), tmp_path / "far.bin"), "p"), node("MatMul", "x p", "z")]
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert [x.weight for x in rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out").rewritten] == ["w", "p"]
    assert not [n for n in onnx.load(tmp_path / "out" / "model.onnx").graph.node if n.op_type == "Constant"]


def test_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Both are hashed, in an order that does not change."""
    tensors = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tensor = external(numpy_helper.from_array(few(3, K), folder), tmp_path / folder / "data.bin")
        tensor.external_data[0].value = f"{folder}/data.bin"
        tensors.append(tensor)
    model = model_of([node("Add", "x a", "sum"), node("Add", "sum b", "z")], tensors)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    hashes = set()
    for _ in range(2):
        hashes.add(rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", force=True).source_sha256)
    assert len(hashes) == 1
    (tmp_path / "b" / "data.bin").write_bytes(np.ones((3, K), np.float32).tobytes())
    assert rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", force=True).source_sha256 not in hashes


def test_too_much_for_the_model_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal, "EMBEDDED_LIMIT", 100)
    (tmp_path / "m.onnx").write_bytes(far_constant_in_a_function(tmp_path / "far.bin").SerializeToString())
    with pytest.raises(ModelError, match=r"function 'Shift', node 'node_p'.*more than 100 bytes.*inline the functions"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    monkeypatch.setattr(sparse, "LIMIT", 100)
    onnx.save(flat_initializer(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="would take 128 bytes"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")


# everything else that a file may hold


def rich_model() -> onnx.ModelProto:
    """Documentation, metadata, annotations, device configurations, functions, odd types, at every level."""

    def note(message: Any, text: str) -> None:
        entry = message.metadata_props.add()
        entry.key, entry.value = "note", text

    add = helper.make_function(
        "local", "F", ["a"], ["b"],
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(K, np.float32), "t")),
         helper.make_node("Add", ["a", "c"], ["b"], name="in function", doc_string="of a node in a function")],
        [helper.make_opsetid("", 18)], overload="second", doc_string="of a function", value_info=[value("c", [K])],
    )  # fmt: skip
    leaky = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("LeakyRelu", ["a"], ["b"])], [helper.make_opsetid("", 18)],
        attribute_protos=[helper.make_attribute("alpha", 0.5)], overload="first",
    )  # fmt: skip
    leaky.node[0].attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT))
    nodes = [
        helper.make_node("F", ["x"], ["middle"], name="one", domain="local", overload="second", doc_string="of a node"),
        helper.make_node("F", ["middle"], ["z"], name="two", domain="local", overload="first", alpha=2.0),
        helper.make_node("SequenceConstruct", ["x"], ["list"]),
        helper.make_node("Optional", [], ["maybe"], type=helper.make_tensor_type_proto(TensorProto.INT64, [2])),
    ]
    model = model_of(nodes, functions=[add, leaky], ir_version=11)
    graph = model.graph
    graph.output.append(helper.make_tensor_sequence_value_info("list", FLOAT, ["rows", K]))
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, [2]))
    graph.output.append(helper.make_value_info("maybe", optional))
    graph.value_info.append(value("middle", ["rows", K]))
    graph.value_info[0].doc_string = "of a value"
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    for dtype, bits in ((TensorProto.INT4, 4), (TensorProto.UINT2, 2), (TensorProto.FLOAT8E4M3FN, 8),
                        (TensorProto.FLOAT4E2M1, 4), (TensorProto.BFLOAT16, 16)):  # fmt: skip
        for shape in ([3, 5], [40, 77]):
            tensor = graph.initializer.add(name=f"type {dtype} {shape}", data_type=dtype, dims=shape)
            tensor.raw_data = bytes(x % 251 for x in range(-(-shape[0] * shape[1] * bits // 8)))
    graph.initializer.append(helper.make_tensor("strings", TensorProto.STRING, [400], [b"abcdef"] * 399 + [b"\xff"]))
    for name in ("x", "middle", "strings"):
        graph.quantization_annotation.add(tensor_name=name).quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w2")
    graph.doc_string, model.doc_string = "of a graph", "of a model"
    model.domain, model.model_version, model.producer_name = "org.example", 5, "somebody"
    for message in (model, graph, graph.input[0], graph.output[1], graph.value_info[0], graph.node[1], model.functions[0]):
        note(message, message.DESCRIPTOR.name)
    model.configuration.add(name="pair", num_devices=2).device.extend(["a", "b"])
    divided = graph.node[3].device_configurations.add(configuration_id="pair", pipeline_stage=1)
    divided.sharding_spec.add(tensor_name="x").sharded_dim.add(axis=0).simple_sharding.add(num_shards=2, dim_value=4)
    return model


def leaves(model: onnx.ModelProto) -> Counter[tuple[str, str, str]]:
    """(message, field, text) of all that is no message itself, without data, opset imports and what rewriting is about."""
    found: Counter[tuple[str, str, str]] = Counter()
    for spot in spots(model):
        if not spot.inside("OperatorSetIdProto"):
            found.update((spot.kind, f.name, str(v)) for f, v in spot.fields if f.message_type is None)
    return found


def test_a_rich_model_loses_nothing(tmp_path: Path) -> None:
    model = rich_model()
    onnx.save(model, tmp_path / "m.onnx")
    rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    written = onnx.load(tmp_path / "out" / "model.onnx")
    lost = leaves(model) - leaves(written)
    # of the product and its weight
    assert set(lost) <= {
        ("NodeProto", "op_type", "MatMul"),
        ("NodeProto", "input", "['x', 'w']"),
        ("TensorProto", "name", "w"),
    }
    after = {tensor.name: tensor for tensor in written.graph.initializer}
    for tensor in model.graph.initializer[1:]:
        assert tensor.data_type == after[tensor.name].data_type
        assert list(tensor.dims) == list(after[tensor.name].dims)
        assert (tensor.raw_data, list(tensor.string_data)) == (
            after[tensor.name].raw_data,
            list(after[tensor.name].string_data),
        )
    assert {(x.domain, x.version) for x in model.opset_import} < {(x.domain, x.version) for x in written.opset_import}


def test_a_divided_layer_is_left(tmp_path: Path) -> None:
    model = rich_model()
    other = model.graph.node.add(op_type="MatMul", name="divided", input=["x", "v"], output=["u"])
    other.device_configurations.add(configuration_id="pair")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(K, N, dtype=np.float32), "v"))
    onnx.save(model, tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert [(x.node, x.reason.partition(":")[0]) for x in report.left] == [("divided", "divided among devices")]


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "step"


def map_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].type.Clear()
    model.graph.output[1].type.map_type.key_type = TensorProto.INT64
    model.graph.output[1].type.map_type.value_type.tensor_type.elem_type = FLOAT


def map_in_a_sequence(model: onnx.ModelProto) -> None:
    map_output(model)
    inner = onnx.TypeProto()
    inner.CopyFrom(model.graph.output[1].type)
    model.graph.output[1].type.sequence_type.elem_type.CopyFrom(inner)


def opaque_value(model: onnx.ModelProto) -> None:
    model.graph.value_info.add(name="z").type.opaque_type.name = "thing"


def sparse_attribute(model: onnx.ModelProto) -> None:
    made = sparse_constant(sparse_of(few(K), "s"), "s")
    made.op_type, made.domain = "Table", "com.acme"
    model.graph.node.append(made)


def segment(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.end = 4


def untyped_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="alpha", f=1.0)


def contradicting_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="alpha", f=1.0, type=onnx.AttributeProto.INT)


def attribute_twice(model: onnx.ModelProto) -> None:
    for number in (1.0, 2.0):
        model.graph.node[1].attribute.append(helper.make_attribute("alpha", number))


def opset_twice(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("", 19))


def function_twice(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.functions.append(function_of([node("Relu", "a", "b")]))


def unnamed_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(few(3)))


def early_devices(model: onnx.ModelProto) -> None:
    model.configuration.add(name="pair", num_devices=2)


def binary_strings(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="words", type=onnx.AttributeProto.STRINGS, strings=[b"\xff"])


def newer_field(model: onnx.ModelProto) -> None:
    model.graph.node[1].MergeFromString(bytes([0xFA, 0x06, 0x01, 0x61]))  # field 111: a string


REFUSED = [
    (training, "holds training_info", "del model.training_info[:]"),
    (map_output, "value 'z'", "zipmap"),
    (map_in_a_sequence, "value 'z'", "map type"),
    (opaque_value, "value 'z'", "opaque type"),
    (sparse_attribute, "node 'node_s' ('Table'), attribute 'sparse_value'", "make it dense"),
    (segment, "tensor 'w'", "segments"),
    (untyped_attribute, "node 'node_z' ('Relu'), attribute 'alpha'", "does not say what type"),
    (contradicting_attribute, "attribute 'alpha'", "declared as INT, but has a value in the field 'f'"),
    (attribute_twice, "node 'node_z' ('Relu')", "'alpha' 2 times in its attributes"),
    (opset_twice, "the model", "'' 2 times in opset_import"),
    (function_twice, "the model", "('local', 'Shift', '') 2 times in functions"),
    (unnamed_initializer, "1 initializers have no name", "remove them"),
    (early_devices, "ir_version 10", "from 11 on"),
    (binary_strings, "attribute 'words'", "not UTF-8"),
    (newer_field, "node 'node_z' ('Relu')", "fields that onnx does not know"),
]


@pytest.mark.parametrize(("change", "where", "words"), [pytest.param(*row, id=row[0].__name__) for row in REFUSED])
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_be_carried_over_is_refused_by_name(
    change: Callable[[onnx.ModelProto], None], where: str, words: str, dry_run: bool, tmp_path: Path
) -> None:
    model = model_of([node("Relu", "x", "z")])
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as error:
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", dry_run=dry_run)
    assert where in str(error.value)
    assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


# weights that are inputs or outputs as well


def listed(ir_version: int) -> onnx.ModelProto:
    """W is an input with a default."""
    return model_of([node("Relu", "x", "z")], inputs=[value("w", [K, N])], ir_version=ir_version)


def test_a_weight_that_callers_may_replace_is_left_with_the_reason(tmp_path: Path) -> None:
    model = listed(10)
    model.graph.node.append(node("MatMul", "x v", "u"))
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((K, N)).astype(np.float32), "v"))
    onnx.save(model, tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert [x.weight for x in report.rewritten] == ["v"]
    assert [(x.node, x.reason) for x in report.left] == [
        ("product", "the weight is also a graph input, which callers may replace; take it out of graph.input")
    ]
    other = np.ones((K, N), np.float32)
    feeds = {"x": X, "w": other}
    np.testing.assert_array_equal(run(tmp_path / "out" / "model.onnx", feeds)[0], run(tmp_path / "m.onnx", feeds)[0])


@pytest.mark.parametrize("steps", [["Identity w t"], ["Transpose w t0", "Transpose t0 t"], ["Add w w t", "Relu t t2"]])
def test_the_reason_holds_for_what_is_computed_from_it(steps: list[str], tmp_path: Path) -> None:
    model = listed(10)
    names = [step.split() for step in steps]
    nodes = [helper.make_node(op, inputs, [output]) for op, *inputs, output in names]
    model.graph.node[0].input[1] = names[-1][-1]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="1 x the weight is also a graph input"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")


def test_old_files_list_all_weights_as_inputs(tmp_path: Path) -> None:
    """Before ONNX file format 4 that was the rule, and onnxruntime takes them for constants; the result has none listed."""
    onnx.save(listed(3), tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert [x.weight for x in report.rewritten] == ["w"]
    same_z(tmp_path / "m.onnx", tmp_path / "out")
    written = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [x.name for x in written.get_inputs()] == ["x"]
    assert not written.get_overridable_initializers()


def test_a_weight_that_is_an_output_stays_one(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "z")])
    model.graph.output.append(value("w", [K, N]))
    onnx.save(model, tmp_path / "m.onnx")
    assert len(rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out").rewritten) == 1
    w = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(run(tmp_path / "out" / "model.onnx", {"x": X}, library=True)[2], w)


def test_a_weight_of_the_outer_graph_used_in_a_branch(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "inner")]
    model = model_of(in_branches(graph_of(nodes, "inner")))
    onnx.save(model, tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert [x.weight for x in report.rewritten] == ["w", "w"]
    assert len({x.error for x in report.rewritten}) == 1
    y, z = run(tmp_path / "out" / "model.onnx", {"x": X}, library=True)
    np.testing.assert_array_equal(y, z)
    stored = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    assert sum(tensor.name.endswith(".packed") for tensor in stored) == 1
