"""Constant values of a graph: initializers, Constant nodes, and whatever is computed from those alone.

Nothing is computed until it is asked for, and nothing is kept: a matrix is read, or its subgraph run, when its layer is
looked at and again when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.errors import ModelError
from fairy2i_export.rewrite.values.subgraph import Reader, Subgraph

STANDARD = ("", "ai.onnx")  # the two names of the domain of standard operators
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
# computed here, without a session; every other operator is computed by onnxruntime
_COPIES = {"Identity", "Transpose", "Cast"}
_FLOATS = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    ir.DataType.DOUBLE: np.dtype(np.float64),
}


class Constants:
    """Which values of a model are constant, and what they are."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._values: set[ir.Value] = set()
        for graph in (model.graph, *model.graph.subgraphs()):
            # an initializer that is also an input is a default: the caller may replace it
            self._values.update(value for value in graph.initializers.values() if not value.is_graph_input())
        for node in model.graph.all_nodes():
            if self._computes_a_constant(node):
                self._values.update(node.outputs)

    def __contains__(self, value: ir.Value | None) -> bool:
        return value is not None and value in self._values

    def _computes_a_constant(self, node: ir.Node) -> bool:
        if node.op_type in _RANDOM or node.domain not in (*STANDARD, "com.microsoft"):
            return False
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return False
        if not node.inputs:
            return node.op_type == "Constant"
        return all(value is None or value in self._values for value in node.inputs)

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The stored tensor of an initializer or a Constant node, unread; None for a computed value."""
        producer = value.producer()
        if producer is None:
            return value.const_value
        if producer.op_type == "Constant" and producer.domain in STANDARD:
            return ir.convenience.get_const_tensor(value)
        return None

    def cone(self, value: ir.Value) -> tuple[list[ir.Node], list[ir.Value]]:
        """(nodes in execution order, stored values) that ``value`` is computed from."""
        nodes: dict[ir.Node, None] = {}
        stored: dict[ir.Value, None] = {}
        pending: list[tuple[ir.Value, bool]] = [(value, False)]
        while pending:
            current, expanded = pending.pop()
            producer = current.producer()
            if self.tensor(current) is not None or producer is None:
                stored[current] = None
            elif expanded:
                nodes[producer] = None
            elif producer not in nodes:
                pending.append((current, True))
                pending.extend((x, False) for x in producer.inputs if x is not None)
        return list(nodes), list(stored)

    def computed(self, value: ir.Value) -> bool:
        """Whether arithmetic made the value, so that it may be the work of a quantizer in the graph."""
        return any(node.op_type not in _COPIES | {"DequantizeLinear", "Reshape"} for node in self.cone(value)[0])

    def array(self, value: ir.Value) -> npt.NDArray[np.generic]:
        """The value itself, of whatever type.

        Raises:
            ModelError: if it cannot be read or computed.
        """
        return self.reader(value)()

    def reader(self, value: ir.Value) -> Reader:
        """A function that reads or computes the value, and goes on working when the graph has changed."""
        tensor = self.tensor(value)
        if tensor is not None:
            return lambda: _read(tensor, value.name)
        producer = value.producer()
        if producer is not None and producer.op_type in _COPIES:
            copied = self._copied(producer)
            if copied is not None:
                return copied
        nodes, stored = self.cone(value)
        return Subgraph(self.model, nodes, {x: self.reader(x) for x in stored}, value).run

    def _copied(self, node: ir.Node) -> Reader | None:
        if node.inputs[0] is None:
            return None
        source = self.reader(node.inputs[0])
        if node.op_type == "Identity":
            return source
        if node.op_type == "Transpose":
            order = node.attributes.get("perm")
            axes = order.as_ints() if order is not None else None
            return lambda: source().transpose(axes)
        target = _FLOATS.get(ir.DataType(node.attributes["to"].as_int()))
        stored = node.inputs[0].dtype
        return (lambda: source().astype(target)) if target is not None and stored in _FLOATS else None

    def stored_values(self, value: ir.Value) -> Iterator[ir.Value]:
        """The initializers that ``value`` is computed from."""
        yield from self.cone(value)[1]


def _read(tensor: ir.TensorProtocol, name: str | None) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = tensor.numpy()
        if isinstance(tensor, ir.ExternalTensor):
            # a copy, and the file unmapped: pages of all matrices read so far would count as ours
            array = array.copy()
            tensor.release()
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"tensor {name}: cannot be read: {error}") from error
    return array
