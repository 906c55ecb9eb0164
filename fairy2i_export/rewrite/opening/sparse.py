"""Sparse tensors, made dense when they are asked for: neither onnx_ir nor a pass knows sparse ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from fairy2i_export.rewrite.opening.tensors import tensor_problem

_INDEX_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8)
LIMIT = 1 << 31  # bytes of a dense form: a few numbers in the file must not fill a machine's memory


class Sparse:
    """One sparse tensor.

    Args:
        proto: values [NNZ] and indices, [NNZ] into the flattened tensor or [NNZ, rank]; checked by :meth:`problem`.
        folder: of the model file.
    """

    def __init__(self, proto: onnx.SparseTensorProto, folder: Path) -> None:
        self._proto = proto
        self._folder = folder
        self.name = proto.values.name
        self.shape = tuple(proto.dims)

    @property
    def dtype(self) -> ir.DataType:
        """Number format of the values."""
        return ir.DataType(self._proto.values.data_type)

    def problem(self) -> str:
        """What is wrong with it, and what to do; empty if it can be made dense."""
        proto = self._proto
        for tensor in (proto.values, proto.indices):
            if problem := tensor_problem(tensor, self._folder):
                return f"its {'values' if tensor is proto.values else 'indices'}: {problem}"
        count = math.prod(proto.values.dims)
        if self.dtype == ir.DataType.STRING:
            return "holds strings; make it dense with onnx.helper.make_tensor"
        if min(self.shape, default=0) < 0 or not self.shape:
            return f"has the shape {list(self.shape)}; the file is damaged"
        size = math.prod(self.shape) * self.dtype.bitwidth // 8
        if size > LIMIT:
            return f"would take {size:,} bytes when it is made dense, more than {LIMIT:,}; take it apart, or leave it out"
        if len(proto.values.dims) != 1 or ir.DataType(proto.indices.data_type) not in _INDEX_TYPES:
            return "expected values [NNZ] and indices in int64; make it dense with onnx.helper.make_tensor"
        if list(proto.indices.dims) not in ([count], [count, len(self.shape)]):
            return (
                f"has {count} values and indices of the shape {list(proto.indices.dims)}; expected [{count}] or "
                f"[{count}, {len(self.shape)}]; the file is damaged"
            )
        return self._index_problem()

    def _index_problem(self) -> str:
        indices = self._array(self._proto.indices).astype(np.int64)
        sizes = np.array(self.shape if indices.ndim == 2 else [math.prod(self.shape)], np.int64)
        columns = indices[:, None] if indices.ndim == 1 else indices
        if ((columns < 0) | (columns >= sizes)).any():
            return f"has indices outside the shape {list(self.shape)}; the file is damaged"
        if len(np.unique(self._flat(indices))) < len(indices):
            return "has two values at one index; the file is damaged"
        return ""

    def dense(self) -> ir.TensorProtocol:
        """The whole tensor, zero where it has no value."""
        dense = np.zeros(math.prod(self.shape), self._array(self._proto.values).dtype)
        dense[self._flat(self._array(self._proto.indices).astype(np.int64))] = self._array(self._proto.values)
        return ir.Tensor(dense.reshape(self.shape), dtype=self.dtype, name=self.name or None)

    def lazy(self, name: str | None) -> ir.LazyTensor:
        """The same, made whenever it is read."""
        return ir.LazyTensor(self.dense, dtype=self.dtype, shape=ir.Shape(self.shape), name=name)

    def _flat(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if indices.ndim == 1:
            return indices
        flat: npt.NDArray[np.int64] = np.ravel_multi_index(tuple(indices.T), self.shape).astype(np.int64).reshape(-1)
        return flat

    def _array(self, tensor: onnx.TensorProto) -> npt.NDArray[np.generic]:
        array: npt.NDArray[np.generic] = ir.serde.deserialize_tensor(tensor, str(self._folder)).numpy()
        return array
