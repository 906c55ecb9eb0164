"""The quantizer's and the packer's inner loops, which live in the C library (custom_ops/src/quantize_rows.h, pack.c).

The functions below check nothing themselves: the library checks every size and refuses what does not fit. They release the
GIL, so that threads work on different rows of one matrix at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import FormatError, LibraryError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Rows = tuple[int, int]  # complex rows, from and to

_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}
_PROFILES = {"bf16-reference": 0, "fp32": 1}
_BLOCK_ENTRIES = 1 << 18  # complex entries of a block of rows: enough to outweigh a call, few enough for the caches


class LatentMatrix:
    """A real matrix [2n, 2m] that is being quantized; the caller's array is neither copied nor changed.

    Args:
        array: float32, float16 or bfloat16; other dtypes and strided arrays are converted to contiguous float32.
        stages: 1 to 4.
        profile: ``bf16-reference`` or ``fp32``.
    """

    def __init__(self, array: npt.NDArray[Any], stages: int, profile: str) -> None:
        dtype = array.dtype if array.dtype in _DTYPES else np.dtype(np.float32)
        self.array = np.ascontiguousarray(array, dtype)
        self.n, self.m = array.shape[0] // 2, array.shape[1] // 2
        self.stages = stages
        self.row_divisor: F32 | None = None
        ffi, self._lib = _binding()
        self._ffi = ffi
        data = ffi.from_buffer(self.array.reshape(-1).view(np.uint8))
        self._struct = ffi.new("f2i_latent *")
        self._struct.data, self._struct.bytes = data, self.array.nbytes
        self._struct.k, self._struct.n = array.shape[1], array.shape[0]
        self._struct.dtype, self._struct.stages, self._struct.profile = _DTYPES[dtype], stages, _PROFILES[profile]
        self._kept = [data]  # memory the struct points to

    def divide_rows(self, divisor: F32) -> None:
        """From now on every real row counts divided by its entry of ``divisor`` [2n]."""
        self.row_divisor = np.ascontiguousarray(divisor, np.float32)
        pointer = self._ffi.from_buffer("float[]", self.row_divisor)
        self._struct.row_divisor, self._struct.row_divisor_count = pointer, self.row_divisor.size
        self._kept.append(pointer)

    def squares(self, rows: Rows) -> F64:
        """Sums of squares of the real rows i and n + i, [rows, 2]."""
        out = np.empty((rows[1] - rows[0], 2), np.float64)
        self._call("f2i_quantize_squares", *rows, *self._out("double[]", out))
        return out

    def sums(self, rows: Rows, scales: F32) -> tuple[F64, I64]:
        """Sums and numbers of the magnitudes on each axis for the stage after those of ``scales``, both [rows, 2, 2]."""
        sums = np.empty((rows[1] - rows[0], 2, 2), np.float64)
        counts = np.empty(sums.shape, np.int64)
        self._call(
            "f2i_quantize_sums",
            *self._in(scales),
            *rows,
            self._ffi.from_buffer("double[]", sums),
            *self._out("int64_t[]", counts),
        )
        return sums, counts

    def codes(self, rows: Rows, scales: F32) -> tuple[U8, F64]:
        """Codes [stages, 2, rows, m] and per complex row the sums of squares of A - Q(A) and A, [rows, 2]."""
        count = rows[1] - rows[0]
        codes = np.empty((self.stages, 2, count, self.m), np.uint8)
        errors = np.empty((count, 2), np.float64)
        arguments = (*rows, *self._out("uint8_t[]", codes), *self._out("double[]", errors))
        self._call("f2i_quantize_codes", *self._in(scales), *arguments)
        return codes, errors

    def dequantize(self, rows: Rows, scales: F32, out: npt.NDArray[Any]) -> None:
        """Write the real rows i and n + i of the dequantized matrix [2n, 2m] into ``out``, float32 or bfloat16, contiguous."""
        target = self._ffi.from_buffer("char[]", out.reshape(-1).view(np.uint8))
        self._call("f2i_quantize_dequantized", *self._in(scales), *rows, _DTYPES[out.dtype], target, out.nbytes)

    def _in(self, scales: F32) -> tuple[Any, int]:
        return self._ffi.from_buffer("float[]", np.ascontiguousarray(scales)), scales.size

    def _out(self, kind: str, array: npt.NDArray[Any]) -> tuple[Any, int]:
        return self._ffi.from_buffer(kind, array), array.size

    def _call(self, function: str, *arguments: Any) -> None:
        message = self._ffi.new("f2i_message *")
        if getattr(self._lib, function)(self._struct, *arguments, message) != 0:
            raise FormatError(self._ffi.string(message.text).decode())


def pack_rows(codes: U8, rows: Rows, packed: U8, n: int) -> None:
    """Write the row tiles of complex rows ``rows`` of a layer with ``n`` of them.

    Args:
        codes: uint8 [stages, 2, rows, m], contiguous.
        rows: multiples of a tile's height, or up to ``n``.
        packed: the whole layer's bytes, format v1.
        n: complex rows of the layer.

    Raises:
        FormatError: a code above 3, or sizes that do not fit.
    """
    ffi, lib = _binding()
    message = ffi.new("f2i_message *")
    source, target = ffi.from_buffer("uint8_t[]", codes), ffi.from_buffer("uint8_t[]", packed)
    stages, m = codes.shape[0], codes.shape[3]
    if lib.f2i_pack(source, codes.size, 2 * m, 2 * n, stages, *rows, target, packed.size, message) != 0:
        raise FormatError(ffi.string(message.text).decode())


def fingerprint(data: npt.NDArray[Any]) -> int:
    """A 64-bit number that changes with the bytes of a contiguous array."""
    ffi, lib = _binding()
    message, found = ffi.new("f2i_message *"), ffi.new("uint64_t *")
    source = ffi.from_buffer("char[]", data.reshape(-1).view(np.uint8))
    if lib.f2i_fingerprint(source, data.nbytes, found, message) != 0:
        raise FormatError(ffi.string(message.text).decode())
    return int(found[0])


def row_blocks(n: int, m: int, tile: int) -> list[Rows]:
    """Cut ``n`` complex rows of ``m`` entries into blocks of whole tiles, the unit of work of a thread."""
    step = max(1, _BLOCK_ENTRIES // (m * tile)) * tile
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def each(function: Callable[[Rows], Any], blocks: Iterable[Rows], pool: Executor | None) -> list[Any]:
    """Call ``function`` for every block, on the pool's threads or on this one; results in the order of the blocks."""
    return list(map(function, blocks) if pool is None else pool.map(function, blocks))


def check_library() -> None:
    """Find out whether weights can be quantized, before work begins that depends on it.

    Raises:
        LibraryError: the operator library is missing, does not load, or is older than the quantizer.
    """
    _binding()


def _binding() -> tuple[Any, Any]:
    from fairy2i_runtime import Fairy2iRuntimeError  # on first use: loads onnxruntime, which importing the package shall not
    from fairy2i_runtime.core import binding

    try:
        ffi, lib = binding()
        lib.f2i_pack  # noqa: B018 - looked up in the header and in the library
    except (Fairy2iRuntimeError, OSError) as error:
        raise LibraryError(f"the operator library, which also quantizes, cannot be used: {error}") from error
    except AttributeError as error:
        raise LibraryError("the operator library is older than this exporter and cannot quantize; reinstall both") from error
    return ffi, lib
