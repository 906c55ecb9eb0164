"""What becomes of every tensor of the checkpoint: planned when the graph is built, done when the tensor comes by.

Building the graph only notes tasks; the exporter then reads the checkpoint front to back and gives every tensor to its tasks,
which hand their results piece by piece to a :class:`fairy2i_export.output.data_file.TensorWriter`. Beside the tensor itself nothing
larger than the packed bytes of one layer is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.calibrated import CalibratedLinear, ScaledCalibrated
from fairy2i_export.codes.layout import TILE_ROWS, packed_size
from fairy2i_export.codes.native import F32, U8, Rows, each, pack_rows, row_blocks
from fairy2i_export.codes.quantizer import Scaled, find_scales
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.plan import NBITS_BLOCK, Linear
from fairy2i_export.errors import WeightError
from fairy2i_export.output.data_file import TensorWriter
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import quantizer_arguments

CHUNK = 1 << 20  # values converted at a time
Array = npt.NDArray[Any]
Make = Callable[[Array, TensorWriter, "Workers"], float | None]
Outputs = dict[str, tuple[ir.DataType, tuple[int, ...]]]  # key of an initializer -> type and shape
Put = Callable[[str, Array], None]  # key of an initializer, next piece of it


@dataclass(frozen=True)
class Workers:
    """Threads that share the work on one tensor; ``pool`` None means the calling thread alone."""

    pool: Executor | None = None
    count: int = 1

    def in_order(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the items, no more of them in memory than there are threads."""
        rest = iter(items)
        while group := list(islice(rest, self.count)):
            yield from each(function, group, self.pool)


@dataclass(frozen=True)
class Task:
    """One thing that is made of one tensor.

    Attributes:
        tensor: name in the checkpoint.
        outputs: names of the initializers that are made; the first one identifies the task.
        layer: the linear layer that is quantized, or None.
        parameters: values of the tensor.
        make: gets the tensor, a writer and threads; returns the relative quantization error, or None.
    """

    tensor: str
    outputs: tuple[str, ...]
    layer: str | None
    parameters: int
    make: Make = field(repr=False)


class WeightSource:
    """Gives the graph builder its weights, as initializers without contents, and notes what is to be done for them.

    Attributes:
        tasks: by the name of their first output, in graph order.
        calibrated: gives a layer, by module name, that calibration has quantized; None = they are quantized here. May be set
            at any time before tasks are run.
    """

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.tasks: dict[str, Task] = {}
        self.calibrated: Callable[[str], CalibratedLinear] | None = None

    def coded(
        self,
        linear: Linear,
        outputs: Outputs,
        write: Callable[[Scaled | ScaledCalibrated, Put, Workers], float],
    ) -> dict[str, ir.TensorProtocol]:
        """Initializers that are made of the codes of a layer.

        Args:
            linear: the layer.
            outputs: key -> type and shape; the initializer is called after the layer and the key.
            write: gets the matrix with its scales, a function that takes pieces of the initializers in their order, and
                threads; returns the relative quantization error.
        """
        planned = {key: _planned(f"{linear.name}.{key}", dtype, shape) for key, (dtype, shape) in outputs.items()}
        options = self.options

        def make(array: Array, writer: TensorWriter, workers: Workers) -> float:
            if self.calibrated is not None:
                found = self.calibrated(linear.name).scaled(array, linear.weight)
                return write(found, lambda key, piece: writer.write(f"{linear.name}.{key}", piece), workers)
            sizes = linear.out_features, linear.in_features
            how = quantizer_arguments(self.checkpoint, linear.name, *sizes, options)
            scaled = find_scales(array, options.stages, options.profile, name=linear.weight, pool=workers.pool, **how)
            return write(scaled, lambda key, piece: writer.write(f"{linear.name}.{key}", piece), workers)

        self._add(linear.weight, list(planned.values()), make, linear.name)
        return dict(planned)

    def vector(self, tensor: str, *, plus: float = 0.0) -> ir.TensorProtocol:
        """A norm or a bias, converted to float32, plus a constant."""
        return self.dense(tensor, plus=plus)

    def dense(
        self,
        tensor: str,
        dtype: npt.DTypeLike = np.float32,
        *,
        name: str = "",
        transposed: bool = False,
        plus: float = 0.0,
    ) -> ir.TensorProtocol:
        """A tensor converted to float32 or float16, optionally transposed, or with a constant added."""
        shape = self.checkpoint.info(tensor).shape
        onnx_type = ir.DataType.FLOAT if np.dtype(dtype) == np.float32 else ir.DataType.FLOAT16
        output = _planned(name or tensor, onnx_type, shape[::-1] if transposed else shape)

        def make(array: Array, writer: TensorWriter, workers: Workers) -> None:
            def strip(columns: slice) -> Array:
                part = convert_finite(array[:, columns], dtype, tensor, (0, columns.start))
                return np.ascontiguousarray(part.T)

            def rows(part: slice) -> Array:
                converted = convert_finite(array[part], dtype, tensor, (part.start, *[0] * (array.ndim - 1)))
                return converted + converted.dtype.type(plus) if plus else converted

            if transposed:
                pieces = workers.in_order(strip, _slices(array.shape[1], max(1, CHUNK // array.shape[0])))
            else:
                pieces = workers.in_order(rows, _slices(len(array), max(1, CHUNK * len(array) // max(1, array.size))))
            for piece in pieces:
                writer.write(str(output.name), piece)

        self._add(tensor, [output], make)
        return output

    def block_quantized(
        self, tensor: str, name: str, bits: int, *, blocked: bool
    ) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
        """(data uint8, scales float32) of a matrix rounded to 8 or 4 bits in blocks of NBITS_BLOCK columns, symmetric.

        Args:
            tensor: a matrix [rows, cols] of the checkpoint.
            name: prefix of the names of the new tensors.
            bits: 8 or 4; values are stored plus 2^(bits - 1), two 4-bit ones to a byte, the lower first.
            blocked: True for data [rows, blocks, bytes of a block] as MatMulNBits wants it, padded to whole blocks;
                False for [rows, cols] as GatherBlockQuantized does (8 bits only).
        """
        rows, cols = self.checkpoint.info(tensor).shape
        blocks = -(-cols // NBITS_BLOCK)
        shape = (rows, blocks, NBITS_BLOCK * bits // 8) if blocked else (rows, cols)
        scale_shape = (rows * blocks,) if blocked else (rows, blocks)
        data = _planned(f"{name}.int{bits}", ir.DataType.UINT8, shape)
        scales = _planned(f"{name}.int{bits}_scales", ir.DataType.FLOAT, scale_shape)

        def make(array: Array, writer: TensorWriter, workers: Workers) -> None:
            def run(part: slice) -> tuple[U8, F32]:
                return _round_blocks(array[part], bits, tensor, part.start)

            for values, found in workers.in_order(run, _slices(rows, max(1, CHUNK // cols))):
                if not blocked:
                    values = values.reshape(len(values), -1)[:, :cols]
                elif bits == 4:
                    values = values[..., 0::2] | values[..., 1::2] << 4
                writer.write(str(data.name), values)
                writer.write(str(scales.name), found)

        self._add(tensor, [data, scales], make)
        return data, scales

    def _add(self, tensor: str, outputs: list[ir.LazyTensor], make: Make, layer: str | None = None) -> None:
        names = tuple(str(output.name) for output in outputs)
        parameters = math.prod(self.checkpoint.info(tensor).shape)
        self.tasks.setdefault(names[0], Task(tensor, names, layer, parameters, make))


def pack_scaled(scaled: Scaled | ScaledCalibrated, pool: Executor | None = None) -> tuple[U8, float]:
    """Codes and packed bytes of a matrix whose scales are known, a block of rows at a time.

    Returns:
        The packed bytes, format v1, and ``|A - Q(A)| / |A|`` in the Frobenius norm, 0 for a matrix of zeros.
    """
    n, m = scaled.matrix.n, scaled.matrix.m
    packed = np.empty(packed_size(n, m, scaled.matrix.stages), np.uint8)

    def work(rows: Rows) -> npt.NDArray[np.float64]:
        codes, errors = scaled.codes(rows)
        pack_rows(codes, rows, packed, n)
        return errors

    return packed, relative_error(np.concatenate(each(work, row_blocks(n, m, TILE_ROWS), pool)))


def relative_error(errors: npt.NDArray[np.float64]) -> float:
    """``|A - Q(A)| / |A|`` from the sums of squares of every row, [rows, 2]; 0 for a matrix of zeros."""
    error, norm = math.fsum(errors[:, 0]), math.fsum(errors[:, 1])
    return math.sqrt(error / norm) if norm else 0.0


def convert_finite(array: Array, dtype: npt.DTypeLike, name: str, first: tuple[int, ...]) -> Array:
    """Convert a piece of a tensor to a floating dtype.

    Args:
        array: the piece.
        dtype: float32 or float16.
        name: of the tensor, for messages.
        first: where in the tensor the piece begins, for messages.

    Raises:
        WeightError: if a value is not finite, before or after the conversion.
    """
    wide = array.astype(np.float32)
    if not np.isfinite(wide).all():
        at = np.argwhere(~np.isfinite(wide))[0]
        where = ", ".join(str(int(a + b)) for a, b in zip(first, at, strict=True))
        raise WeightError(f"{name}: the value at [{where}] is not finite; the checkpoint is damaged or training diverged")
    if np.dtype(dtype) == np.float32:
        return wide
    with np.errstate(over="ignore"):
        out = wide.astype(dtype)
    if not np.isfinite(out).all():
        raise WeightError(f"{name}: values up to {np.abs(wide).max():.3g} do not fit float16; keep it float32")
    return out


def _round_blocks(array: Array, bits: int, name: str, first_row: int) -> tuple[U8, F32]:
    """uint8 [rows, blocks, NBITS_BLOCK] plus 2^(bits - 1), padded with zeros, and float32 scales [rows, blocks]."""
    rows, cols = array.shape
    blocks = -(-cols // NBITS_BLOCK)
    zero, top = 1 << (bits - 1), (1 << (bits - 1)) - 1
    padded = np.zeros((rows, blocks * NBITS_BLOCK), np.float32)
    padded[:, :cols] = convert_finite(array, np.float32, name, (first_row, 0))
    block = padded.reshape(rows, blocks, NBITS_BLOCK)
    scales = np.abs(block).max(axis=2) / np.float32(top)
    scales[scales == 0] = 1
    return (np.rint(block / scales[..., None]) + zero).astype(np.uint8), scales


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _planned(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """An initializer whose place in the file is known and whose contents are not there yet."""

    def contents() -> ir.TensorProtocol:
        raise AssertionError(f"{name}: used before it was written")

    return ir.LazyTensor(contents, dtype=dtype, shape=ir.Shape(shape), name=name)
