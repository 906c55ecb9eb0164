"""ONNX models of many equal linear layers with different random weights, which lie in one external data file.

All nodes read the graph's input and write an output of their own: one run goes through the whole file once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairy2i_export.codes.layout import packed_size
from linear.shapes import Shape

PAGE = 4096
BLOCK = 128  # of MatMulNBits: weights that share a scale
STAGES = 2  # of Fairy2iMatMul: 2 bits per weight
ITEM_BYTES: dict[int, int] = {TensorProto.UINT8: 1, TensorProto.FLOAT: 4}


@dataclass(frozen=True)
class Operand:
    """A weight tensor of one layer."""

    name: str
    kind: int
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.dims)) * ITEM_BYTES[self.kind]

    @property
    def stride(self) -> int:
        """Bytes in the file, where every tensor starts on a page."""
        return -(-self.bytes // PAGE) * PAGE


@dataclass(frozen=True)
class LayerKind:
    """An operator with its weights: ``fairy2i``, ``q2``, ``q4`` (MatMulNBits) or ``f32`` (MatMul).

    ``ternary4`` and ``ternary0`` are what ``--backend matmulnbits`` writes, at accuracy levels 4 and 0.
    """

    name: str

    def operands(self, shape: Shape) -> list[Operand]:
        n, k = shape.n, shape.k
        if self.name == "fairy2i":
            return [Operand("packed", TensorProto.UINT8, (packed_size(n // 2, k // 2, STAGES),))]
        if self.name == "f32":
            return [Operand("weight", TensorProto.FLOAT, (k, n))]
        if self.ternary:
            return [Operand("ternary", TensorProto.UINT8, (n // 2, -(-2 * STAGES * k // BLOCK), BLOCK // 4))]
        bits, blocks = int(self.name[1:]), -(-k // BLOCK)
        codes = Operand("codes", TensorProto.UINT8, (n, blocks, BLOCK * bits // 8))
        return [codes, Operand("scales", TensorProto.FLOAT, (n, blocks))]

    @property
    def ternary(self) -> bool:
        return self.name.startswith("ternary")

    def layer_bytes(self, shape: Shape) -> int:
        return sum(operand.bytes for operand in self.operands(shape))

    def nodes(self, shape: Shape, weights: list[str], output: str) -> list[onnx.NodeProto]:
        return (
            _ternary_nodes(shape, weights, output, int(self.name[-1]))
            if self.ternary
            else [self.node(shape, weights, output)]
        )

    def node(self, shape: Shape, weights: list[str], output: str) -> onnx.NodeProto:
        size: dict[str, Any] = {"K": shape.k, "N": shape.n}
        if self.name == "fairy2i":
            fixed: dict[str, Any] = {"stages": STAGES, "layout_version": 1, "scale_scope": 0}
            return helper.make_node(
                "Fairy2iMatMul", ["x", *weights, "layer_scales"], [output], domain="ai.fairy2i", **size, **fixed
            )
        if self.name == "f32":
            return helper.make_node("MatMul", ["x", *weights], [output])
        fixed = {"bits": int(self.name[1:]), "block_size": BLOCK, "accuracy_level": 4}  # 4: int8 activations, the fast path
        return helper.make_node("MatMulNBits", ["x", *weights], [output], domain="com.microsoft", **size, **fixed)


def _ternary_nodes(shape: Shape, weights: list[str], output: str, accuracy_level: int) -> list[onnx.NodeProto]:
    """The nodes of fairy2i_export/onnx_graph/formats/matmulnbits.py for x [rows, K]."""
    make, name = helper.make_node, output
    size: dict[str, Any] = {"K": 2 * STAGES * shape.k, "N": shape.n // 2, "bits": 2, "block_size": BLOCK}
    return [
        make("Reshape", ["x", "halves"], [f"{name}/halves"]),
        make("Gather", [f"{name}/halves", "order"], [f"{name}/pieces"], axis=1),
        make("Mul", [f"{name}/pieces", "factors"], [f"{name}/scaled"]),
        make("Reshape", [f"{name}/scaled", "vectors"], [f"{name}/vectors"]),
        make(
            "MatMulNBits",
            [f"{name}/vectors", *weights, "ones"],
            [f"{name}/product"],
            domain="com.microsoft",
            accuracy_level=accuracy_level,
            **size,
        ),
        make("Reshape", [f"{name}/product", "joined"], [output]),
    ]


def _ternary_constants(shape: Shape) -> dict[str, Any]:
    pieces = 4 * STAGES
    return {
        "halves": np.array([-1, 2, shape.k // 2]),
        "order": np.array([0, 1] * (pieces // 2) + [1, 0] * (pieces // 2)),
        "factors": np.linspace(-0.02, 0.02, 2 * pieces, dtype=np.float32)[:, None],
        "vectors": np.array([-1, 2, 2 * STAGES * shape.k]),
        "ones": np.ones(shape.n // 2 * -(-2 * STAGES * shape.k // BLOCK), np.float32),
        "joined": np.array([-1, shape.n]),
    }


def write_weights(kind: LayerKind, shape: Shape, copies: int, path: Path) -> None:
    """Random weights of ``copies`` layers. Any byte is a valid code; scales and floats are ordinary numbers."""
    rng = np.random.default_rng(0)
    floats = rng.uniform(0.01, 0.02, 1 << 20).astype(np.float32)
    with path.open("wb") as file:
        for copy in range(copies):
            for operand in kind.operands(shape):
                if operand.kind == TensorProto.UINT8:
                    file.write(rng.bytes(operand.bytes))
                else:
                    count = operand.bytes // 4
                    np.resize(np.roll(floats, copy + 1), count).tofile(file)
                file.write(bytes(operand.stride - operand.bytes))


def write_model(kind: LayerKind, shape: Shape, copies: int, data: Path, path: Path) -> None:
    """A model of the first ``copies`` layers of a data file beside it. Input x [rows, K], outputs y0, y1, ... [rows, N]."""
    nodes, tensors, outputs, offset = [], [], [], 0
    for copy in range(copies):
        names = []
        for operand in kind.operands(shape):
            tensor = TensorProto(name=f"{operand.name}{copy}", data_type=operand.kind, dims=operand.dims)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", operand.bytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += operand.stride
            tensors.append(tensor)
            names.append(tensor.name)
        nodes += kind.nodes(shape, names, f"y{copy}")
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, ["rows", shape.n]))
    if kind.name == "fairy2i":
        scales = np.array([[[0.02, 0.015], [0.018, 0.02]], [[0.007, 0.008], [0.008, 0.007]]], np.float32)
        tensors.append(numpy_helper.from_array(scales, "layer_scales"))
    if kind.ternary:
        tensors += [numpy_helper.from_array(value, name) for name, value in _ternary_constants(shape).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", shape.k])
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in (("", 18), ("ai.fairy2i", 1), ("com.microsoft", 1))
    ]
    graph = helper.make_graph(nodes, "layers", [x], outputs, tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
