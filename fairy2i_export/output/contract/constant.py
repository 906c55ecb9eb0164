"""Compute a constant subgraph: onnxruntime first, the ONNX reference evaluator where onnxruntime lacks an operator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from fairy2i_export.errors import reason_of
from fairy2i_export.output.contract.worker import Answer, Array, Feeds

RESULT = "fairy2i_result"  # the value that is wanted, as float32: numpy lacks bfloat16
_TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16),
          "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16), "tensor(double)": np.dtype(np.float64)}  # fmt: skip


def compute(model: bytes, feeds: Feeds) -> Answer:
    """Run a model with the outputs :data:`RESULT` and the same value in its own number format.

    Args:
        model: an ONNX file.
        feeds: its inputs.

    Returns:
        The value in its own number format if that is a float, float32 otherwise; or a text: why neither evaluator computes it.
    """
    errors = []
    for evaluate in (_by_onnxruntime, _by_reference):
        try:
            return evaluate(model, feeds)
        except Exception as error:  # either raises whatever it likes, onnxruntime without a common base class
            errors.append(reason_of(error))
    return f"{errors[0]}; reference evaluator: {errors[1]}"


def _by_onnxruntime(model: bytes, feeds: Feeds) -> Array:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    values = {name: _ort_value(ort, array) for name, array in feeds.items()}
    result: Array = session.run_with_ort_values([RESULT], values)[0].numpy()
    return result.astype(_TYPES.get(session.get_outputs()[1].type, result.dtype), copy=False)


def _ort_value(ort: Any, array: Array) -> Any:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    import onnx_ir as ir  # takes a while to import

    dtype = int(ir.DataType.from_numpy(array.dtype))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, dtype)  # bfloat16 and other types numpy lacks


def _by_reference(model: bytes, feeds: Feeds) -> Array:
    import onnx
    from onnx.reference import ReferenceEvaluator

    result, exact = (np.asarray(array) for array in ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, feeds))
    return exact if exact.dtype in _TYPES.values() else result
