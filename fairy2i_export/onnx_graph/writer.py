"""A small helper that collects nodes and initializers of a graph under readable names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators
CONSTANT = "const/"  # begins the names of the graph's own numbers


class GraphWriter:
    """Collects nodes in execution order and initializers in the order in which they shall lie in the file."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.shared: dict[str, ir.Value] = {}  # what several nodes use and one computes, by a name that its maker chooses

    def node(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Append a node; None is an input that is absent, a value named "" an output that is not wanted."""
        self.nodes.append(ir.node(op_type, inputs, attributes=attributes, domain=domain, outputs=outputs, name=name))

    def add(self, node: ir.Node) -> ir.Value:
        """Append a finished node and return its first output."""
        self.nodes.append(node)
        return node.outputs[0]

    def op(
        self, name: str, op_type: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Append a node with one output, called NAME/output, and return that."""
        output = ir.Value(name=f"{name}/output")
        self.node(name, op_type, inputs, [output], domain=domain, **attributes)
        return output

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add a tensor as an initializer under its own name, or return the one that is already there."""
        name = tensor.name
        if not name:
            raise AssertionError("an initializer needs a name")
        if name not in self.initializers:
            value = ir.Value(
                name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.initializers[name] = value
        return self.initializers[name]

    def ints(self, *values: int, name: str = "") -> ir.Value:
        """A one-dimensional int64 constant."""
        return self.initializer(ir.tensor(np.array(values, np.int64), name=name or CONSTANT + "_".join(map(str, values))))

    def scalar(self, value: int | float) -> ir.Value:
        """A scalar constant, int64 or float32."""
        dtype = np.int64 if isinstance(value, int) else np.float32
        return self.initializer(ir.tensor(np.array(value, dtype), name=f"{CONSTANT}scalar_{value}"))
