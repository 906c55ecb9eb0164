"""Pass "resolve": the shape and number format of every constant matrix, and whether the operator could hold it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.layout import MAX_FEATURES
from fairy2i_export.codes.native import F32
from fairy2i_export.errors import ModelError
from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.values.constants import Constants
from fairy2i_export.rewrite.values.ranks import rank_of

_SUPPORTED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def resolve_weights(linears: Iterable[Linear], constants: Constants) -> int:
    """Fill in shape and dtype, or the reason against them; returns how many matrices can become operators."""
    return sum(_resolve(linear, constants) for linear in linears if linear.alive)


def matrix_of(linear: Linear, constants: Constants) -> npt.NDArray[np.generic]:
    """The matrix A [N, K] of a resolved layer, in its own number format.

    Raises:
        ModelError: if it cannot be read or computed.
    """
    if linear.value is None:
        raise AssertionError(f"{linear.name}: has no constant operand")
    array = constants.array(linear.value)
    return array.T if linear.transposed else array


def float_matrix(array: npt.NDArray[np.generic]) -> F32:
    """The same in float32, contiguous."""
    result: F32 = np.ascontiguousarray(array, dtype=np.float32)
    return result


def _resolve(linear: Linear, constants: Constants) -> bool:
    if linear.value is None:
        raise AssertionError(f"{linear.name}: neither a constant nor a reason")
    tensor = constants.tensor(linear.value)
    if tensor is not None:
        dtype, shape = tensor.dtype, tuple(tensor.shape.numpy())
    else:
        try:
            array = constants.array(linear.value)
        except ModelError as error:
            linear.reason = str(error)
            return False
        dtype, shape = ir.DataType.from_numpy(array.dtype), array.shape
    linear.reason = _why_not(linear, dtype, shape)
    if linear.alive:
        linear.shape = (shape[1], shape[0]) if linear.transposed else (shape[0], shape[1])
        linear.dtype = dtype
    return linear.alive


def _why_not(linear: Linear, dtype: ir.DataType, shape: tuple[int, ...]) -> str:
    if dtype not in _SUPPORTED:
        return f"number format {dtype.name.lower()}; the operator computes in float32"
    if len(shape) != 2:
        return f"the constant has {len(shape)} dimensions, expected 2"
    if 0 in shape or shape[0] % 2 or shape[1] % 2:
        return f"odd dimension: {shape[0]} x {shape[1]}"
    if max(shape) > MAX_FEATURES:
        return f"more than {MAX_FEATURES} features"
    if linear.on_left and rank_of(linear.node.inputs[1]) is None:
        return "the matrix is the left operand, and the number of dimensions of the right one is unknown"
    return ""
