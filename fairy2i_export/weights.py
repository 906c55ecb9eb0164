"""Weights as lazy tensors: each is read, converted and handed to the writer in its turn, and forgotten afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.checkpoint import Checkpoint
from fairy2i_export.errors import WeightError
from fairy2i_export.layout import PackedLinear, pack, packed_size
from fairy2i_export.options import ExportOptions
from fairy2i_export.plan import NBITS_BLOCK, Linear
from fairy2i_export.quantizer import F32, QuantizedLinear, quantize

_CHUNK = 1 << 22  # values converted at a time
Progress = Callable[[str, int], None]  # tensor name, parameters done


@dataclass
class WeightSource:
    """Turns tensors of a checkpoint into lazy ONNX tensors.

    Attributes:
        errors: relative quantization error of every layer written so far, ``|A - Q(A)| / |A|`` in the Frobenius norm.
        progress: called after each tensor.
    """

    checkpoint: Checkpoint
    options: ExportOptions
    progress: Progress = lambda name, parameters: None
    errors: dict[str, float] = field(default_factory=dict)
    _kept: dict[str, PackedLinear] = field(default_factory=dict)

    def quantized(self, linear: Linear) -> tuple[ir.LazyTensor, ir.LazyTensor, ir.LazyTensor | None]:
        """(packed, scales, row multiplier or None) of a layer.

        The packed tensor must be evaluated first: that is when the layer is quantized, once; the small rest is kept for the
        other two. Initializers are written in the order in which they were added to the graph, external before inline ones.
        """

        def packed() -> ir.TensorProtocol:
            weight = self.checkpoint.read(linear.weight)
            q = quantize(
                weight,
                self.options.stages,
                self.options.profile,
                row_multiplier=self.options.row_multiplier,
                name=linear.weight,
            )
            self.errors[linear.name] = relative_error(weight, q)
            del weight
            p = pack(q)
            self._kept[linear.name] = replace(p, packed=np.empty(0, np.uint8))  # all but the packed bytes
            self.progress(linear.name, linear.parameters)
            return ir.tensor(p.packed)

        def rows() -> npt.NDArray[Any]:
            multiplier = self._kept[linear.name].row_multiplier
            if multiplier is None:
                raise AssertionError(f"{linear.name}: a row multiplier was planned but not computed")
            return multiplier

        n, m, stages = linear.out_features // 2, linear.in_features // 2, self.options.stages
        row = None
        if self.options.row_multiplier != "none":
            row = _lazy(f"{linear.name}.row_multiplier", ir.DataType.FLOAT, (2 * n,), lambda: ir.tensor(rows()))
        return (
            _lazy(f"{linear.name}.packed", ir.DataType.UINT8, (packed_size(n, m, stages),), packed),
            _lazy(
                f"{linear.name}.scales",
                ir.DataType.FLOAT,
                (stages, 2, 2),
                lambda: ir.tensor(self._kept[linear.name].scales),
            ),
            row,
        )

    def vector(self, tensor: str, *, plus: float = 0.0) -> ir.TensorProtocol:
        """A norm or a bias, converted to float32, plus a constant; read at once, being small."""
        array = convert_finite(self.checkpoint.read(tensor), np.float32, tensor)
        if plus:
            array = array + np.float32(plus)
        self.progress(tensor, array.size)
        return ir.tensor(array, name=tensor)

    def dense(
        self, tensor: str, dtype: npt.DTypeLike = np.float32, *, name: str = "", transposed: bool = False
    ) -> ir.LazyTensor:
        """A tensor converted to float32 or float16, optionally transposed."""

        def read() -> ir.TensorProtocol:
            array = convert_finite(self.checkpoint.read(tensor), dtype, tensor)
            self.progress(tensor, array.size)
            return ir.tensor(np.ascontiguousarray(array.T) if transposed else array)

        shape = self.checkpoint.info(tensor).shape
        onnx_type = ir.DataType.FLOAT if np.dtype(dtype) == np.float32 else ir.DataType.FLOAT16
        return _lazy(name or tensor, onnx_type, shape[::-1] if transposed else shape, read)

    def block_quantized(self, tensor: str, name: str, bits: int, *, blocked: bool) -> tuple[ir.LazyTensor, ir.LazyTensor]:
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
        kept: list[F32] = []

        def data() -> ir.TensorProtocol:
            values, scales = _round_blocks(self.checkpoint.read(tensor), bits, tensor)
            kept.append(scales.reshape(-1) if blocked else scales)
            self.progress(tensor, rows * cols)
            if not blocked:
                return ir.tensor(np.ascontiguousarray(values.reshape(rows, -1)[:, :cols]))
            return ir.tensor(values if bits == 8 else values[..., 0::2] | values[..., 1::2] << 4)

        shape = (rows, blocks, NBITS_BLOCK * bits // 8) if blocked else (rows, cols)
        scale_shape = (rows * blocks,) if blocked else (rows, blocks)
        return (
            _lazy(f"{name}.int{bits}", ir.DataType.UINT8, shape, data),
            _lazy(f"{name}.int{bits}_scales", ir.DataType.FLOAT, scale_shape, lambda: ir.tensor(kept.pop())),
        )


def relative_error(weight: npt.NDArray[Any], q: QuantizedLinear) -> float:
    """``|A - Q(A)| / |A|`` in the Frobenius norm, computed a few rows at a time; 0 for a matrix of zeros."""
    n = q.n
    step = max(1, _CHUNK // (4 * q.m))
    error = norm = 0.0
    for start in range(0, n, step):
        upper = slice(start, min(start + step, n))
        lower = slice(n + start, n + min(start + step, n))
        rows = None
        if q.row_multiplier is not None:
            rows = np.concatenate([q.row_multiplier[upper], q.row_multiplier[lower]])
        part = QuantizedLinear(q.codes[:, :, upper], q.scales, q.profile, rows, q.col_multiplier)
        a = np.concatenate([weight[upper], weight[lower]]).astype(np.float32)
        error += float(np.square(a - part.dequantize("none"), dtype=np.float64).sum())
        norm += float(np.square(a, dtype=np.float64).sum())
    return float(np.sqrt(error / norm)) if norm else 0.0


def convert_finite(array: npt.NDArray[Any], dtype: npt.DTypeLike, name: str) -> npt.NDArray[Any]:
    """Convert to a floating dtype a piece at a time.

    Raises:
        WeightError: if a value is not finite, before or after the conversion.
    """
    flat = array.reshape(-1)
    out = np.empty(flat.shape, dtype)
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK].astype(np.float32)
        if not np.isfinite(piece).all():
            at = start + int(np.argmin(np.isfinite(piece)))
            where = ", ".join(map(str, np.unravel_index(at, array.shape)))
            raise WeightError(
                f"{name}: the value at [{where}] is not finite; the checkpoint is damaged or training diverged"
            )
        with np.errstate(over="ignore"):
            out[start : start + _CHUNK] = piece
        if not np.isfinite(out[start : start + _CHUNK]).all():
            raise WeightError(f"{name}: values up to {np.abs(piece).max():.3g} do not fit float16; keep it float32")
    return out.reshape(array.shape)


def _round_blocks(array: npt.NDArray[Any], bits: int, name: str) -> tuple[npt.NDArray[np.uint8], F32]:
    """uint8 [rows, blocks, NBITS_BLOCK] plus 2^(bits - 1), padded with zeros, and float32 scales [rows, blocks]."""
    rows, cols = array.shape
    blocks = -(-cols // NBITS_BLOCK)
    zero, top = 1 << (bits - 1), (1 << (bits - 1)) - 1
    values = np.full((rows, blocks * NBITS_BLOCK), zero, np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, _CHUNK // cols)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        padded = np.zeros((part.stop - start, blocks * NBITS_BLOCK), np.float32)
        padded[:, :cols] = convert_finite(array[part], np.float32, name)
        block = padded.reshape(-1, blocks, NBITS_BLOCK)
        scale = np.abs(block).max(axis=2) / np.float32(top)
        scale[scale == 0] = 1
        values[part] = (np.rint(block / scale[..., None]) + zero).astype(np.uint8).reshape(part.stop - start, -1)
        scales[part] = scale
    return values.reshape(rows, blocks, NBITS_BLOCK), scales


def _lazy(name: str, dtype: ir.DataType, shape: tuple[int, ...], function: Callable[[], ir.TensorProtocol]) -> ir.LazyTensor:
    return ir.LazyTensor(function, dtype=dtype, shape=ir.Shape(shape), name=name)
