"""What becomes of every tensor of the checkpoint: planned when the graph is built, done when the tensor comes by.

Building the graph only notes tasks; the exporter then reads the checkpoint front to back and gives every tensor to its tasks,
which hand their results piece by piece to a :class:`fairy2i_export.output.data_file.TensorWriter`. Beside the tensor itself nothing
larger than the packed bytes of one layer is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.calibrated import FoundLinear
from fairy2i_export.codes.native import F32, U8, Workers
from fairy2i_export.codes.quantizer import find_scales
from fairy2i_export.codes.strategies.ifairy import find_conjugate
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.errors import WeightError
from fairy2i_export.onnx_graph.formats.base import Linear, Outputs, Write
from fairy2i_export.onnx_graph.formats.rounded import BLOCK, round_blocks
from fairy2i_export.output.data_file import TensorWriter
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import quantizer_arguments
from fairy2i_export.source.rotation.weights import Change, RotatedWeights

CHUNK = 1 << 20  # values converted at a time
Array = npt.NDArray[Any]
Make = Callable[[Array, TensorWriter, Workers], float | None]


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
    """Gives the graph builder its weights (formats.base.Weights) as initializers without contents, and notes what is to be done.

    Attributes:
        settings: the options in force.
        tasks: by the name of their first output, in graph order.
        calibrated: gives a layer, by module name, that calibration has quantized; None = they are quantized here. May be set
            at any time before tasks are run.
        replaced: small tensors (norms, biases) by their names, float32, that stand in the place of the checkpoint's, rotated or
            not. May be set at any time before tasks are run.

    Args:
        checkpoint: the source.
        options: in force.
        rotated: what becomes of its tensors before they are written, or None.
    """

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions, rotated: RotatedWeights | None = None) -> None:
        self.checkpoint = checkpoint
        self.settings = options
        self.tasks: dict[str, Task] = {}
        self.calibrated: Callable[[str], FoundLinear] | None = None
        self.replaced: Mapping[str, F32] = {}
        self._rotated = rotated

    def coded(self, linear: Linear, outputs: Outputs, write: Write) -> dict[str, ir.TensorProtocol]:
        """Initializers that are made of the codes of a layer, called after the layer and their keys in ``outputs``."""
        planned = {key: _planned(f"{linear.name}.{key}", dtype, shape) for key, (dtype, shape) in outputs.items()}
        options = self.settings

        def make(array: Array, writer: TensorWriter, workers: Workers) -> float:
            def put(key: str, piece: Array) -> None:
                writer.write(f"{linear.name}.{key}", piece)

            change = self._change(f"{linear.name}.weight")
            if self.calibrated is not None:
                found = self.calibrated(linear.name).scaled(array, linear.weight)
                if change is not None:  # what the codes stand for
                    found = replace(found, weight=change.whole(array, workers.in_order))
                return write(found, put, workers)
            if linear.conjugate:
                words = self.checkpoint.words(linear.weight)
                return write(find_conjugate(array, options.profile, name=words, pool=workers.pool), put, workers)
            sizes = linear.out_features, linear.in_features
            how = quantizer_arguments(self.checkpoint, linear.name, *sizes, options)
            scaled = find_scales(array, linear.stages, options.profile, name=linear.weight, pool=workers.pool, **how)
            return write(scaled, put, workers)

        self._add(linear.weight, list(planned.values()), make, linear.name)
        return dict(planned)

    def dense(
        self,
        tensor: str,
        dtype: npt.DTypeLike = np.float32,
        *,
        name: str = "",
        transposed: bool = False,
        plus: float = 0.0,
        times: float = 1.0,
    ) -> ir.TensorProtocol:
        """A tensor converted to float32 or float16, optionally transposed, or with a constant added and then multiplied.

        ``name`` is the new tensor's: the module that uses it, a dot, and more; the old one's if none is given.
        """
        shape = self.checkpoint.info(tensor).shape
        onnx_type = ir.DataType.FLOAT if np.dtype(dtype) == np.float32 else ir.DataType.FLOAT16
        words = self.checkpoint.words(tensor)
        output = _planned(name or tensor, onnx_type, shape[::-1] if transposed else shape)

        def make(array: Array, writer: TensorWriter, workers: Workers) -> None:
            array = self.replaced.get(tensor, array)
            change = None if tensor in self.replaced else self._change(str(output.name))
            if change is not None and (transposed or not change.row_by_row):
                check_finite(array, tensor)
                array, change = change.whole(array, workers.in_order), None

            def strip(columns: slice) -> Array:
                part = convert_finite(array[:, columns], dtype, tensor, (0, columns.start))
                return np.ascontiguousarray(part.T)

            def rows(part: slice) -> Array:
                converted = _converted(array, part, dtype, words, change)
                converted = converted + converted.dtype.type(plus) if plus else converted
                return converted * converted.dtype.type(times) if times != 1 else converted

            if transposed:
                pieces = workers.in_order(strip, _slices(array.shape[1], max(1, CHUNK // array.shape[0])))
            else:
                pieces = workers.in_order(rows, _slices(len(array), max(1, CHUNK * len(array) // max(1, array.size))))
            for piece in pieces:
                writer.write(str(output.name), piece)

        self._add(tensor, [output], make)
        return output

    def rounded(self, tensor: str, name: str, bits: int, *, blocked: bool) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
        """(data uint8, scales float32) of a matrix rounded to 8 or 4 bits in blocks of columns, symmetric.

        Args:
            tensor: a matrix [rows, cols] of the checkpoint.
            name: prefix of the names of the new tensors.
            bits: 8 or 4; values are stored plus 2^(bits - 1), two 4-bit ones to a byte, the lower first.
            blocked: True for data [rows, blocks, bytes of a block] as MatMulNBits wants it, padded to whole blocks;
                False for [rows, cols] as GatherBlockQuantized does (8 bits only).
        """
        rows, cols = self.checkpoint.info(tensor).shape
        blocks = -(-cols // BLOCK)
        shape = (rows, blocks, BLOCK * bits // 8) if blocked else (rows, cols)
        scale_shape = (rows * blocks,) if blocked else (rows, blocks)
        data = _planned(f"{name}.int{bits}", ir.DataType.UINT8, shape)
        scales = _planned(f"{name}.int{bits}_scales", ir.DataType.FLOAT, scale_shape)

        def make(array: Array, writer: TensorWriter, workers: Workers) -> None:
            change = self._change(f"{name}.weight")
            if change is not None and not change.row_by_row:
                check_finite(array, tensor)
                array, change = change.whole(array, workers.in_order), None

            def run(part: slice) -> tuple[U8, F32]:
                return round_blocks(_converted(array, part, np.float32, self.checkpoint.words(tensor), change), bits)

            for values, found in workers.in_order(run, _slices(rows, max(1, CHUNK // cols))):
                if not blocked:
                    values = values.reshape(len(values), -1)[:, :cols]
                elif bits == 4:
                    values = values[..., 0::2] | values[..., 1::2] << 4
                writer.write(str(data.name), values)
                writer.write(str(scales.name), found)

        self._add(tensor, [data, scales], make)
        return data, scales

    def turn(self, module: str) -> ir.TensorProtocol | None:
        """float32 [columns, columns]: what the input of a tied module is multiplied by before the shared matrix; None: nothing."""
        norm = None if self._rotated is None else self._rotated.folded_norm(module)
        if norm is None:
            return None
        tensor = f"{norm}.weight"
        size = self.checkpoint.info(tensor).shape[0]
        output = _planned(f"{module}.turn", ir.DataType.FLOAT, (size, size))

        def make(array: Array, writer: TensorWriter, workers: Workers) -> None:
            assert self._rotated is not None
            writer.write(str(output.name), self._rotated.turn(module))

        self._add(tensor, [output], make, counts=False)
        return output

    def _change(self, name: str) -> Change | None:
        """What rotation makes of the tensor of which one of this name is written."""
        module, _, key = name.rpartition(".")
        return None if self._rotated is None else self._rotated.change(module, key)

    def _add(
        self, tensor: str, outputs: list[ir.LazyTensor], make: Make, layer: str | None = None, *, counts: bool = True
    ) -> None:
        names = tuple(str(output.name) for output in outputs)
        parameters = math.prod(self.checkpoint.info(tensor).shape) if counts else 0
        self.tasks.setdefault(names[0], Task(tensor, names, layer, parameters, make))


def _converted(array: Array, rows: slice, dtype: npt.DTypeLike, name: str, change: Change | None) -> Array:
    """Some rows of a tensor after a change, if there is one, in a floating dtype; errors as :func:`convert_finite`."""
    first = (rows.start, *[0] * (array.ndim - 1))
    if change is None:
        return convert_finite(array[rows], dtype, name, first)
    check_finite(array[rows], name, first)
    return convert_finite(change.part(array, rows), dtype, name, first)


def check_finite(array: Array, name: str, first: tuple[int, ...] | None = None) -> None:
    """Raise WeightError if a value of a piece of a tensor is not finite; arguments as for :func:`convert_finite`."""
    if not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0]
        where = ", ".join(str(int(a + b)) for a, b in zip(first or [0] * array.ndim, at, strict=True))
        raise WeightError(f"{name}: the value at [{where}] is not finite; the checkpoint is damaged or training diverged")


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
    check_finite(wide, name, first)
    if np.dtype(dtype) == np.float32:
        return wide
    with np.errstate(over="ignore"):
        out = wide.astype(dtype)
    if not np.isfinite(out).all():
        raise WeightError(f"{name}: values up to {np.abs(wide).max():.3g} do not fit float16; keep it float32")
    return out


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _planned(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """An initializer whose place in the file is known and whose contents are not there yet."""

    def contents() -> ir.TensorProtocol:
        raise AssertionError(f"{name}: used before it was written")

    return ir.LazyTensor(contents, dtype=dtype, shape=ir.Shape(shape), name=name)
