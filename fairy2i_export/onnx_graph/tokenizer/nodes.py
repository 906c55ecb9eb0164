"""A few lines over onnx_ir that make a graph of standard operators and of those of onnxruntime-extensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

DOMAIN = "ai.onnx.contrib"  # of onnxruntime-extensions
_OPSET = 19  # Equal of strings
_IR_VERSION = 9


class GraphBuilder:
    """Collects nodes and constants; :meth:`model` makes an ONNX model of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []
        self._binary: dict[str, dict[str, bytes]] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str], default: Any = None) -> ir.Value:
        """An input; with a default value, a caller may leave it out."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        if default is not None:
            value.const_value = ir.tensor(np.asarray(default), name=name)
            self._constants.append(value)
        self._inputs.append(value)
        return value

    def constant(self, array: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant of numbers."""
        return self._constant(ir.tensor(np.asarray(array, dtype), name=self._fresh()))

    def strings(self, values: Sequence[str | bytes]) -> ir.Value:
        """A constant string tensor [len(values)]; bytes need not be UTF-8."""
        data = [value.encode() if isinstance(value, str) else value for value in values]
        return self._constant(ir.StringTensor(data, shape=ir.Shape([len(data)]), name=self._fresh()))

    def _constant(self, tensor: Any) -> ir.Value:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._constants.append(value)
        return value

    def _fresh(self) -> str:
        return f"constant_{len(self._constants)}"

    def node(
        self,
        operator: str,
        *inputs: ir.Value,
        outputs: int = 1,
        domain: str = "",
        binary: bytes | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node; returns its output, or a list of them. ``binary`` becomes the attribute ``model``, not UTF-8."""
        name = f"{operator}_{len(self._nodes)}"
        if binary is not None:
            attributes["model"] = ""
            self._binary[name] = {"model": binary}
        node = ir.node(operator, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_{index}"
        self._nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def extension(
        self, operator: str, *inputs: ir.Value, outputs: int = 1, binary: bytes | None = None, **attributes: Any
    ) -> Any:
        """A node of onnxruntime-extensions."""
        return self.node(operator, *inputs, outputs=outputs, domain=DOMAIN, binary=binary, **attributes)

    def replace(self, text: ir.Value, pattern: str, replacement: str | bytes) -> ir.Value:
        """Replace every match of a regular expression (RE2) in every string."""
        result: ir.Value = self.extension(
            "StringRegexReplace", text, self.strings([pattern]), self.strings([replacement]), global_replace=1
        )
        return result

    def model(
        self, outputs: Mapping[str, tuple[ir.Value, ir.DataType, Sequence[str]]], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """The model, with named and typed outputs."""
        values = []
        for name, (value, dtype, shape) in outputs.items():
            value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
            values.append(value)
        graph = ir.Graph(
            self._inputs,
            values,
            nodes=self._nodes,
            initializers=self._constants,
            opset_imports={"": _OPSET, DOMAIN: 1},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="fairy2i-export")
        model.metadata_props.update(metadata)
        proto = ir.to_proto(model)
        for node in proto.graph.node:
            for attribute in node.attribute:
                if attribute.name in self._binary.get(node.name, {}):
                    attribute.s = self._binary[node.name][attribute.name]  # onnx_ir writes text only
        return proto


def any_of(texts: Iterable[str]) -> str:
    """A regular expression of RE2 for any of some texts, the longest where several begin; empty if there are none."""
    longest_first = sorted(filter(None, texts), key=lambda text: (-len(text), text))
    return "|".join("".join(x if x.isalnum() else rf"\x{{{ord(x):x}}}" for x in text) for text in longest_first)
