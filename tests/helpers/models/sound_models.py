"""Small ONNX models that the rewriter takes and whose parts tests exchange: every place where a graph may hold weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


K = 8


rng = np.random.default_rng(3)


W = rng.standard_normal((K, K)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op} {outputs}", **attributes)


def value(name: str, shape: list[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def model_of(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None, **more: Any) -> onnx.ModelProto:
    """X [rows, K] -> y, with w [K, K], b [K] and what ``more`` names."""
    stored = {"w": W, "b": W[0], **more}
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value("x", ["rows", K])], [value("y", ["rows", K])], initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])


def branches(body: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    graphs = [
        helper.make_graph(nodes, "body", [], [value(name)])
        for nodes, name in ((body, output), ([node("Neg", "x", "n")], "n"))
    ]
    condition = [node("Size", "x", "size"), node("Cast", "size", "any", to=TensorProto.BOOL)]
    return [*condition, node("If", "any", "y", then_branch=graphs[0], else_branch=graphs[1])]


def sparse() -> onnx.SparseTensorProto:
    values, indices = W[0, :3], np.array([1, 4, 6])
    tensors = [numpy_helper.from_array(array, name) for array, name in ((values, "s"), (indices, "i"))]
    return onnx.SparseTensorProto(values=tensors[0], indices=tensors[1], dims=[K])


def with_sparse_tensors() -> onnx.ModelProto:
    constant = node("Constant", "", "c")
    attribute = constant.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse())
    model = model_of([constant, node("MatMul", "x w", "p"), node("Add", "p c", "q"), node("Add", "q s", "y")])
    model.graph.sparse_initializer.append(sparse())
    return model


def with_function() -> onnx.ModelProto:
    constant = node("Constant", "", "c", value=numpy_helper.from_array(W[1], "c"))
    function = helper.make_function(
        "local", "Shift", ["a"], ["r"], [constant, node("Add", "a c", "r")], [helper.make_opsetid("", 18)]
    )
    return model_of([node("MatMul", "x w", "p"), node("Shift", "p", "y", domain="local")], [function])


QUANTIZED = {"q": np.arange(K * K, dtype=np.int8).reshape(K, K), "s": np.array(0.1, np.float32)}


SOUND: dict[str, Callable[[], onnx.ModelProto]] = {
    "product and bias": lambda: model_of([node("MatMul", "x w", "p"), node("Add", "p b", "y")]),
    "gemm": lambda: model_of([node("Gemm", "x w b", "y", alpha=0.5, transB=1)]),
    "transposed and cast": lambda: model_of(
        [node("Transpose", "w", "t", perm=[1, 0]), node("Cast", "t", "c", to=FLOAT), node("MatMul", "x c", "y")]
    ),
    "branches": lambda: model_of(branches([node("MatMul", "x w", "p")], "p")),
    "function": with_function,
    "sparse": with_sparse_tensors,
    "dequantized": lambda: model_of(
        [node("DequantizeLinear", "q s", "d"), node("MatMul", "x d", "p"), node("MatMul", "w p", "y")], **QUANTIZED
    ),
}
