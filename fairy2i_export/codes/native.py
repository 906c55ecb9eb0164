"""The quantizer's and the packer's inner loops, which live in the C library (custom_ops/src/quantizer).

The functions below check nothing themselves: the library checks every size and refuses what does not fit. They release the
GIL, so that threads work on different rows of one matrix at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
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
_JOINT = 1  # F2I_JOINT
_BLOCK_ENTRIES = 1 << 18  # complex entries of a block of rows: enough to outweigh a call, few enough for the caches


class LatentMatrix:
    """A real matrix [2n, 2m] that is being quantized; the caller's array is neither copied nor changed.

    Args:
        array: float32, float16 or bfloat16; other dtypes and strided arrays are converted to contiguous float32.
        stages: 1 to 4.
        profile: ``bf16-reference`` or ``fp32``.
        imag: None, or ``array`` [n, m] holds the real parts of a complex W and this its imaginary ones, of the same dtype: the
            matrix is then [[re, im], [im, -re]], that is U = 0, without being formed.
    """

    def __init__(self, array: npt.NDArray[Any], stages: int, profile: str, imag: npt.NDArray[Any] | None = None) -> None:
        dtype = array.dtype if array.dtype in _DTYPES else np.dtype(np.float32)
        self.array = np.ascontiguousarray(array, dtype)
        self.is_complex = imag is not None
        self.n: int = array.shape[0] // (1 if self.is_complex else 2)
        self.m: int = array.shape[1] // (1 if self.is_complex else 2)
        self.stages = stages
        ffi, self._lib = library()
        self._ffi = ffi
        data = ffi.from_buffer(self.array.reshape(-1).view(np.uint8))
        self._struct = ffi.new("f2i_latent *")
        self._struct.data, self._struct.bytes = data, self.array.nbytes
        self._struct.k, self._struct.n = 2 * self.m, 2 * self.n
        self._struct.dtype, self._struct.stages, self._struct.profile = _DTYPES[dtype], stages, _PROFILES[profile]
        self._kept = [data]  # memory the struct points to
        if imag is not None:
            other = ffi.from_buffer(np.ascontiguousarray(imag, dtype).reshape(-1).view(np.uint8))
            self._struct.imag = other
            self._kept.append(other)

    def divide_rows(self, divisor: F32) -> None:
        """From now on every real row counts divided by its entry of ``divisor`` [2n]."""
        self._divide("row_divisor", divisor)

    def divide_columns(self, divisor: F32) -> None:
        """From now on every real column counts divided by its entry of ``divisor`` [2m], after the rows."""
        self._divide("col_divisor", divisor)

    def choose_jointly(self) -> None:
        """From now on :meth:`codes` chooses the nearest of the 4^stages points instead of going stage after stage."""
        self._struct.quantizer = _JOINT

    def _divide(self, field: str, divisor: F32) -> None:
        pointer = self._ffi.from_buffer("float[]", np.ascontiguousarray(divisor, np.float32))
        setattr(self._struct, field, pointer)
        setattr(self._struct, f"{field}_count", len(pointer))
        self._kept.append(pointer)

    def parts(self, rows: Rows) -> F32:
        """The complex entries that are to be quantized: float32 [2 (U, W), 2 (re, im), rows, m]."""
        out = np.empty((2, 2, rows[1] - rows[0], self.m), np.float32)
        self._call("f2i_quantize_parts", *rows, *self._out("float[]", out))
        return out

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
        codes: uint8 [stages, 2, rows, m], or of a layer without U [rows, m], contiguous.
        rows: multiples of a tile's height, or up to ``n``.
        packed: the whole layer's bytes, layout version 1, or 2 of a layer without U.
        n: complex rows of the layer.

    Raises:
        FormatError: a code above 3, or sizes that do not fit.
    """
    ffi, lib = library()
    message = ffi.new("f2i_message *")
    source, target = ffi.from_buffer("uint8_t[]", codes), ffi.from_buffer("uint8_t[]", packed)
    pack, stages = (lib.f2i_pack, codes.shape[:1]) if codes.ndim == 4 else (lib.f2i_pack_conjugate, ())
    if pack(source, codes.size, 2 * codes.shape[-1], 2 * n, *stages, *rows, target, packed.size, message) != 0:
        raise FormatError(ffi.string(message.text).decode())


class Points:
    """The points sum_t s_t i^k_t of one set of scales, a table that is made once for any number of searches.

    Distances are ``(x - X)^2 + (y - Y)^2`` in float32, each step rounded, with (x, y) an entry reflected into the first
    quadrant (``x = |re|``) and (X, Y) the points there, sums of scales in float32, stage 1 first. The nearest wins, among
    equally near ones the lowest combination of codes (stage 1 counts most); its codes are reflected back: 0 <-> 2 in stages
    on the real axis where ``re < 0``, 1 <-> 3 in those on the imaginary axis where ``im < 0``. Magnitudes above 1e18 overflow.

    Args:
        scales: float32 [stages, 2 (re, im)], 1 to 4 stages.

    Raises:
        FormatError: scales of another shape.
    """

    def __init__(self, scales: F32) -> None:
        self._ffi, self._lib = library()
        self.scales = np.ascontiguousarray(scales, np.float32)
        self.stages = len(self.scales)
        self._struct = self._ffi.new("f2i_points *")
        self._message = self._ffi.new("f2i_message *")
        if self.scales.ndim != 2 or self.scales.shape[1] != 2:
            raise FormatError(f"scales: expected [stages, 2 (re, im)], got shape {self.scales.shape}")
        scale_buffer = self._ffi.from_buffer("float[]", self.scales)
        self._check(self._lib.f2i_points_init(self._struct, scale_buffer, self.scales.size, self._message))

    def codes(self, re: F32, im: F32) -> U8:
        """Codes of the nearest points, uint8 [stages, ...], for entries ``re + i im`` of any shape."""
        null = self._ffi.NULL
        re, im = self._entries(re, im)
        codes = np.empty((self.stages, *re.shape), np.uint8)
        buffers = (*self._in(re, im), re.size, self._ffi.from_buffer("uint8_t[]", codes), null, null)
        self._check(self._lib.f2i_nearest(self._struct, *buffers, self._message))
        return codes

    def round(self, re: F32, im: F32) -> tuple[U8, F32, F32]:
        """Codes as :meth:`codes`, and the nearest points themselves: real and imaginary parts, float32 [...]."""
        re, im = self._entries(re, im)
        codes = np.empty((self.stages, *re.shape), np.uint8)
        q_re, q_im = np.empty_like(re), np.empty_like(im)
        buffers = (*self._in(re, im), re.size, self._ffi.from_buffer("uint8_t[]", codes), *self._in(q_re, q_im))
        self._check(self._lib.f2i_nearest(self._struct, *buffers, self._message))
        return codes, q_re, q_im

    def sums(self, re: F32, im: F32, weights: F32 | None = None) -> F64:
        """What least squares needs, for entries reflected into the first quadrant: float64 [4^stages, 4].

        Row ``k1 * 4^(stages - 1) + ... + kT`` belongs to the entries whose nearest point has the codes k1 ... kT and holds
        the sums of ``weight``, ``weight * |re|``, ``weight * |im|`` and ``weight * (re^2 + im^2)``; None = ones.
        """
        re, im = self._entries(re, im)
        given = self._ffi.NULL
        if weights is not None:
            given = self._ffi.from_buffer("float[]", self._entries(weights, re)[0])
        out = np.empty((4**self.stages, 4), np.float64)
        target = self._ffi.from_buffer("double[]", out)
        self._check(
            self._lib.f2i_nearest_sums(self._struct, *self._in(re, im), given, re.size, target, out.size, self._message)
        )
        return out

    def _entries(self, re: F32, im: F32) -> tuple[F32, F32]:
        if np.shape(re) != np.shape(im):
            raise FormatError(f"expected arrays of one shape, got {np.shape(re)} and {np.shape(im)}")
        return np.ascontiguousarray(re, np.float32), np.ascontiguousarray(im, np.float32)

    def _in(self, re: F32, im: F32) -> tuple[Any, Any]:
        return self._ffi.from_buffer("float[]", re), self._ffi.from_buffer("float[]", im)

    def _check(self, status: int) -> None:
        if status != 0:
            raise FormatError(self._ffi.string(self._message.text).decode())


def fingerprint(data: npt.NDArray[Any]) -> int:
    """A 64-bit number that changes with the bytes of a contiguous array."""
    ffi, lib = library()
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


def check_library() -> None:
    """Find out whether weights can be quantized, before work begins that depends on it.

    Raises:
        LibraryError: the operator library is missing, does not load, or is older than the quantizer.
    """
    library()


def kernel_problem() -> str:
    """What is wrong with the kernel that the environment chooses (FAIRY2I_KERNEL, FAIRY2I_ISA); empty if nothing is."""
    from fairy2i_runtime.ops.core import KernelError, chosen_kernel

    try:
        chosen_kernel()
    except KernelError as error:
        return str(error)
    return ""


def library() -> tuple[Any, Any]:
    from fairy2i_runtime.errors import Fairy2iRuntimeError  # on first use: importing this shall not load the library
    from fairy2i_runtime.ops.core import binding

    try:
        ffi, lib = binding()
        lib.f2i_pack_conjugate  # noqa: B018 - looked up in the header and in the library
    except (Fairy2iRuntimeError, OSError) as error:
        raise LibraryError(f"the operator library, which also quantizes, cannot be used: {error}") from error
    except AttributeError as error:
        raise LibraryError("the operator library is older than this exporter and cannot quantize; reinstall both") from error
    return ffi, lib
