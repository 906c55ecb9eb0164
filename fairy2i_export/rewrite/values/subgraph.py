"""A constant subgraph, cut out of its model and computed by ONNX Runtime, which may die of it: in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.errors import Fairy2iError, ModelError, reason_of
from fairy2i_export.output.contract.constant import RESULT, compute
from fairy2i_export.output.contract.worker import WorkerEnd, call

Reader = Callable[[], npt.NDArray[np.generic]]
CONSTANT_SECONDS = 120.0  # for a constant, with the start of the process: most take milliseconds
CONSTANT_SECONDS_PER_GB = 120.0  # more, of the values it is computed from


class EvaluationError(Fairy2iError):
    """ONNX Runtime dies of a constant or takes too long: no reason to leave one product as it is, but the end of the rewriting."""


class Subgraph:
    """Nodes cut out of a model, to be run now or later."""

    def __init__(
        self, model: ir.Model, nodes: Sequence[ir.Node], stored: Mapping[ir.Value, Reader], wanted: ir.Value
    ) -> None:
        """Copy the nodes.

        Args:
            model: the model they are part of, for its operator sets.
            nodes: in execution order; their inputs are stored values or results of earlier ones.
            stored: the values to start from. They are fed as inputs, so that no size limit applies.
            wanted: an output of one of the nodes.
        """
        self.name = wanted.name
        self.stored = {_name(value): read for value, read in stored.items()}
        values: dict[ir.Value, ir.Value] = {}
        for value in stored:
            values[value] = ir.Value(name=_name(value), type=value.type, shape=value.shape)
        copies = []
        for node in nodes:
            for output in node.outputs:
                values[output] = ir.Value(name=_name(output))
            copies.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    [None if value is None else values[value] for value in node.inputs],
                    list(node.attributes.values()),
                    overload=node.overload,
                    outputs=[values[output] for output in node.outputs],
                )
            )
        result = ir.Value(name=RESULT, type=ir.TensorType(ir.DataType.FLOAT))
        copies.append(ir.node("Cast", [values[wanted]], {"to": ir.DataType.FLOAT}, outputs=[result]))
        graph = ir.Graph(
            [values[value] for value in stored],
            [result, values[wanted]],
            nodes=copies,
            opset_imports=dict(model.graph.opset_imports),
            name="constant",
        )
        self.model = ir.Model(graph, ir_version=model.ir_version)

    def run(self) -> npt.NDArray[np.generic]:
        """The wanted value in its own number format if that is a float; float32 otherwise.

        Raises:
            ModelError: if neither evaluator can compute it.
            EvaluationError: if ONNX Runtime dies of it, or is not ready in time.
        """
        feeds = {name: read() for name, read in self.stored.items()}
        try:
            for value in self.model.graph.inputs:
                array = feeds[value.name or ""]
                value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            proto = ir.serde.serialize_model(self.model)
        except (ir.serde.SerdeError, ValueError, TypeError) as error:
            raise ModelError(f"the constant {self.name} cannot be computed: {reason_of(error)}") from error
        size = sum(array.nbytes for array in feeds.values())
        seconds = CONSTANT_SECONDS + CONSTANT_SECONDS_PER_GB * size / 1e9
        what = f"the constant {self.name}"
        hint = "repair the model, or leave the products that need it out (--exclude)"
        try:
            answer = call(compute, proto.SerializeToString(), feeds=feeds, seconds=seconds)
        except WorkerEnd as end:
            if end.late:
                raise EvaluationError(f"ONNX Runtime computes {what} for more than {seconds:.0f} s: {hint}") from None
            raise EvaluationError(f"ONNX Runtime died while it computed {what} ({end.how}): {hint}") from None
        if isinstance(answer, str):
            raise ModelError(f"{what} cannot be computed: {answer}")
        return answer


def _name(value: ir.Value) -> str:
    return value.name or f"unnamed_{id(value)}"
