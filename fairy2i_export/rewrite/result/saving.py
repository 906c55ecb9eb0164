"""The model and its data file; and an outline of both, for a look before the work is done."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from fairy2i_export.errors import ModelError, reason_of
from fairy2i_export.output.data_file import ALIGNMENT, DATA, INLINE_BYTES, MODEL


def save_model(model: ir.Model, folder: Path, source: Path) -> None:
    """Write model.onnx and model.onnx.data; lazy weights are made one after the other.

    Raises:
        ModelError: the model cannot be written as an ONNX file: it would be larger than 2 GB without its data, for example.
    """
    try:
        ir.save(
            model,
            folder / MODEL,
            external_data=DATA,
            size_threshold_bytes=INLINE_BYTES,
            alignment=ALIGNMENT,
            align_threshold=0,
        )
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise _not_written(source, error) from error


def save_outline(model: ir.Model, folder: Path, source: Path, unmade: Collection[ir.Value]) -> None:
    """The same with zeros for all data outside model.onnx, and ones for the values in ``unmade``, which are lazy.

    The data file is a hole that all tensors share: it takes no space and no time.

    Raises:
        ModelError: as :func:`save_model`.
    """
    stored = [value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None]
    tensors = [value.const_value for value in stored]
    longest = 0
    try:
        for value, tensor in zip(stored, tensors, strict=True):
            if tensor is None:
                continue
            if tensor.nbytes > INLINE_BYTES:
                longest = max(longest, tensor.nbytes)
                value.const_value = ir.ExternalTensor(
                    DATA, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
                )
            elif value in unmade:
                value.const_value = ir.Tensor(np.ones(tensor.shape.numpy(), tensor.dtype.numpy()), name=value.name)
            elif isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        with (folder / DATA).open("wb") as file:
            file.truncate(longest)
        onnx.save(ir.serde.serialize_model(model), folder / MODEL)
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise _not_written(source, error) from error
    finally:
        for value, tensor in zip(stored, tensors, strict=True):
            value.const_value = tensor


def _not_written(source: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{source}: the rewritten model cannot be written as an ONNX file: {reason_of(error)}; nothing was written"
    )
