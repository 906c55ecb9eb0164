"""Constant values of a graph: initializers, Constant nodes, and whatever is computed from those alone.

Nothing is computed until it is asked for, and nothing is kept: a matrix is read, or its subgraph run, when its layer is
looked at and again when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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


_NUMPY = {dtype.value: array for dtype, array in _FLOATS.items()}
Step = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


class Constants:
    """Which values of a model are constant, and what they are."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._values: set[ir.Value] = set()
        self._replaceable: set[ir.Value] = set()  # would be constant if callers could not replace an initializer
        for graph in (model.graph, *model.graph.subgraphs()):
            # an initializer that is also an input is a default: the caller may replace it
            self._values.update(value for value in graph.initializers.values() if not value.is_graph_input())
            self._replaceable.update(value for value in graph.initializers.values() if value.is_graph_input())
        for node in model.graph.all_nodes():
            if self._computes_a_constant(node, self._values):
                self._values.update(node.outputs)
            elif self._replaceable and self._computes_a_constant(node, self._values, self._replaceable):
                self._replaceable.update(node.outputs)

    def __contains__(self, value: ir.Value | None) -> bool:
        return value is not None and value in self._values

    def overridable(self, value: ir.Value | None) -> bool:
        """Whether a value is no constant only because a caller may replace an initializer that is an input too."""
        return value is not None and value in self._replaceable

    def _computes_a_constant(self, node: ir.Node, *known: set[ir.Value]) -> bool:
        if node.op_type in _RANDOM or node.domain not in (*STANDARD, "com.microsoft"):
            return False
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return False
        if not node.inputs:
            return node.op_type == "Constant"
        return all(value is None or any(value in values for values in known) for value in node.inputs)

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The stored tensor of an initializer or a Constant node, unread; None for a computed value."""
        producer = value.producer()
        if producer is None:
            return value.const_value
        if producer.op_type == "Constant" and producer.domain in STANDARD:
            try:
                return ir.convenience.get_const_tensor(value)
            except (ValueError, TypeError, KeyError, AttributeError):
                return None  # malformed: the evaluators say how
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
        steps: list[Step] = []
        current = value
        while self.tensor(current) is None and (step := self._step(current)) is not None:
            steps.append(step[1])
            current = step[0]
        tensor = self.tensor(current)
        if tensor is not None:
            read: Reader = lambda: _read(tensor, current.name)  # noqa: E731
        else:
            nodes, stored = self.cone(current)
            read = Subgraph(self.model, nodes, {x: self.reader(x) for x in stored}, current).run
        return read if not steps else lambda: _apply(steps[::-1], read(), value.name)

    def _step(self, value: ir.Value) -> tuple[ir.Value, Step] | None:
        """A value that this one is a plain copy of, and how it is copied; None if it is none."""
        node = value.producer()
        if node is None or node.op_type not in _COPIES or len(node.inputs) != 1 or node.inputs[0] is None:
            return None
        source = node.inputs[0]
        if node.op_type == "Identity":
            return source, lambda array: array
        attribute = node.attributes.get("perm" if node.op_type == "Transpose" else "to")
        if node.op_type == "Transpose":
            if attribute is None:
                return source, lambda array: array.T
            axes = attribute.value if attribute.type == ir.AttributeType.INTS else ()
            return (source, lambda array: array.transpose(axes)) if sorted(axes) == list(range(len(axes))) else None
        target = _NUMPY.get(attribute.value) if attribute is not None and attribute.type == ir.AttributeType.INT else None
        stored = source.dtype
        return (source, lambda array: array.astype(target)) if target is not None and stored in _FLOATS else None

    def stored_values(self, value: ir.Value) -> Iterator[ir.Value]:
        """The initializers that ``value`` is computed from."""
        yield from self.cone(value)[1]


def _apply(steps: Sequence[Step], array: npt.NDArray[np.generic], name: str | None) -> npt.NDArray[np.generic]:
    try:
        for step in steps:
            array = step(array)
    except (ValueError, TypeError) as error:
        raise ModelError(f"the constant {name} cannot be computed: {error}") from error
    return array


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
