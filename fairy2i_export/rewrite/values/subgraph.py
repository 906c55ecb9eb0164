"""Compute a constant subgraph: onnxruntime first, the ONNX reference evaluator where onnxruntime lacks an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.errors import ModelError, reason_of

Reader = Callable[[], npt.NDArray[np.generic]]
_RESULT = "fairy2i_result"  # the value that is wanted, as float32: numpy lacks bfloat16
_TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16),
          "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16), "tensor(double)": np.dtype(np.float64)}  # fmt: skip


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
        result = ir.Value(name=_RESULT, type=ir.TensorType(ir.DataType.FLOAT))
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
        """
        feeds = {name: read() for name, read in self.stored.items()}
        try:
            for value in self.model.graph.inputs:
                array = feeds[value.name or ""]
                value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            proto = ir.serde.serialize_model(self.model)
        except (ir.serde.SerdeError, ValueError, TypeError) as error:
            raise ModelError(f"the constant {self.name} cannot be computed: {reason_of(error)}") from error
        errors = []
        for evaluate in (_by_onnxruntime, _by_reference):
            try:
                return evaluate(proto, feeds)
            except Exception as error:  # either raises whatever it likes, onnxruntime without a common base class
                errors.append(reason_of(error))
        raise ModelError(f"the constant {self.name} cannot be computed: {errors[0]}; reference evaluator: {errors[1]}")


def _name(value: ir.Value) -> str:
    return value.name or f"unnamed_{id(value)}"


def _by_onnxruntime(proto: Any, feeds: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {name: _ort_value(ort, array) for name, array in feeds.items()}
    result: npt.NDArray[np.generic] = session.run_with_ort_values([_RESULT], values)[0].numpy()
    return result.astype(_TYPES.get(session.get_outputs()[1].type, result.dtype), copy=False)


def _ort_value(ort: Any, array: npt.NDArray[np.generic]) -> Any:
    dtype = ir.DataType.from_numpy(array.dtype)
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(dtype))  # bfloat16 and other types numpy lacks


def _by_reference(proto: Any, feeds: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    from onnx.reference import ReferenceEvaluator

    result, exact = (np.asarray(array) for array in ReferenceEvaluator(proto).run(None, feeds))
    return exact if exact.dtype in _TYPES.values() else result
