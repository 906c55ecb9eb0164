"""The norms of a finished model, as weights of its source: what tuning (compile/calibrate/tuning/) changed beside the layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.errors import FormatError


def read_norms(model: ir.Model, offset: float) -> dict[str, npt.NDArray[np.float32]]:
    """Weights by tensor name: of all vectors in a model, only norms' are called so.

    Args:
        model: that was compiled from a checkpoint.
        offset: what the graph adds to weights of norms and the checkpoint does not have. Taking it away and adding it again gives
            the bits that are there.

    Raises:
        FormatError: if there are none, or not in float32.
    """
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and name.endswith(".weight") and len(tensor.shape) == 1:
            if tensor.dtype != ir.DataType.FLOAT:
                raise FormatError(f"{name}: expected a norm in float32, found {tensor.dtype}; the model has been edited")
            found[name] = np.array(tensor.numpy(), np.float32) - np.float32(offset)
    if not found:
        raise FormatError("expected norms (NAME.weight) in the model, found none; it has been edited")
    return found
