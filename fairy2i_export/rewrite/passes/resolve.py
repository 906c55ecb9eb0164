"""Pass "resolve": the shape and number format of every constant matrix, and whether the operator could hold it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from fairy2i_export.codes.layout import MAX_FEATURES
from fairy2i_export.errors import ModelError
from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.patterns import pattern_of
from fairy2i_export.rewrite.values.constants import Constants

_SUPPORTED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def resolve_weights(linears: Iterable[Linear], constants: Constants) -> int:
    """Fill in shape and dtype, or the reason against them; returns how many matrices can become operators."""
    return sum(_resolve(linear, constants) for linear in linears if linear.alive)


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
    linear.reason = _why_not(dtype, shape)
    pattern = pattern_of(linear.node)
    if linear.alive and pattern is not None:
        found = pattern.shape(linear, (shape[0], shape[1]))
        if isinstance(found, str):
            linear.reason = found
        else:
            linear.shape, linear.dtype = found, dtype
    return linear.alive


def _why_not(dtype: ir.DataType, shape: tuple[int, ...]) -> str:
    if dtype not in _SUPPORTED:
        return f"number format {dtype.name.lower()}; the operator computes in float32"
    if len(shape) != 2:
        return f"the constant has {len(shape)} dimensions, expected 2"
    if 0 in shape or shape[0] % 2 or shape[1] % 2:
        return f"odd dimension: {shape[0]} x {shape[1]}"
    if max(shape) > MAX_FEATURES:
        return f"more than {MAX_FEATURES} features"
    return ""
