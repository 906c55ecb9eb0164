"""Binding to the C library without ONNX Runtime (cffi, ABI mode): one layer, numpy arrays in and out.

The declarations are read from the header that is installed beside the library, so Python holds no second version of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import numpy.typing as npt

from fairy2i_runtime.errors import Fairy2iRuntimeError, LibraryError
from fairy2i_runtime.ops.library import library_folder, library_path, load_problem

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class KernelError(Fairy2iRuntimeError):
    """The library refused an argument; the message is the library's own."""


@dataclass(frozen=True)
class KernelInfo:
    """A kernel of the library.

    Attributes:
        family: ``lut``, ``exact`` or ``dot``.
        isa: instruction set, or variant of one.
        available: this CPU runs it.
        is_default: it is what runs of its family here if nobody names an instruction set.
    """

    family: str
    isa: str
    available: bool
    is_default: bool


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any]:
    path = Path(library_path())
    beside, packaged = path.with_name("fairy2i.h"), library_folder() / "fairy2i.h"
    header = beside if beside.is_file() else packaged
    if not header.is_file():
        raise Fairy2iRuntimeError(f"expected the C header beside the library, found none at {beside}; reinstall the package")
    text = header.read_text(encoding="ascii")
    declarations = text.partition("/* cffi-begin */")[2].partition("/* cffi-end */")[0]
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    try:
        return ffi, ffi.dlopen(str(path))
    except OSError as error:
        raise LibraryError(f"cannot load {path}: {load_problem(path, error)}") from error


def binding() -> tuple[Any, Any]:
    """(ffi, library) for code that calls functions of fairy2i.h which have no class here: the exporter's quantizer."""
    return _library()


def _text(ffi: Any, value: Any) -> str:
    return str(ffi.string(value).decode("utf-8", "replace"))


def _check(ffi: Any, status: int, message: Any) -> None:
    """Raise KernelError with the library's message unless the call succeeded."""
    if status != 0:
        raise KernelError(_text(ffi, message.text))


def _kernel(ffi: Any, info: Any) -> KernelInfo:
    return KernelInfo(_text(ffi, info.family), _text(ffi, info.isa), bool(info.available), bool(info.is_default))


def kernels() -> list[KernelInfo]:
    """All kernels compiled into the library, best ISA of a family first."""
    ffi, lib = _library()
    found = []
    for index in range(lib.f2i_kernel_count()):
        info = ffi.new("f2i_kernel_info *")
        _check(ffi, lib.f2i_kernel_at(index, info), ffi.new("f2i_message *"))
        found.append(_kernel(ffi, info))
    return found


def library_info() -> dict[str, Any]:
    """What the library is and what it can do here: path, version, cpu_features (list), kernels (list of dicts)."""
    ffi, lib = _library()
    features = ffi.new("char[256]")
    lib.f2i_cpu_features(features, 256)
    return {
        "path": library_path(),
        "version": _text(ffi, lib.f2i_version()),
        "cpu_features": _text(ffi, features).split(),
        "kernels": [vars(kernel) for kernel in kernels()],
    }


class Linear:
    """A packed layer that the C library executes in place.

    Args:
        packed: uint8 [packed size], format v1, C-contiguous.
        scales: float32 [stages, 2, 2].
        k: real input features.
        n: real output features.
        row_multiplier: float32 [n] or None.
        col_multiplier: float32 [k] or None.
        kernel: kernel family, ``auto``, or None for the environment's choice or the default.
        isa: ISA to force, or None.
        layout_version: version of the packed bytes.
        scale_scope: what a scale covers.
        tuning: settings for this processor (fairy2i.h), or None for the environment's or what the library knows.
        activation_bits: 8 rounds the halves of every row of activations first (layout version 2); 0 does not.

    Raises:
        KernelError: if the operands contradict the format, or the kernel does not exist or cannot run here.
    """

    def __init__(
        self,
        packed: U8,
        scales: F32,
        k: int,
        n: int,
        *,
        row_multiplier: F32 | None = None,
        col_multiplier: F32 | None = None,
        kernel: str | None = None,
        isa: str | None = None,
        tuning: str | None = None,
        layout_version: int = 1,
        scale_scope: int = 0,
        activation_bits: int = 0,
    ) -> None:
        ffi, lib = _library()
        self.k, self.n = k, n
        self._operands: list[npt.NDArray[Any] | None] = [
            np.ascontiguousarray(packed, np.uint8),
            np.ascontiguousarray(scales, np.float32),
            None if row_multiplier is None else np.ascontiguousarray(row_multiplier, np.float32),
            None if col_multiplier is None else np.ascontiguousarray(col_multiplier, np.float32),
        ]
        weights = ffi.new("f2i_weights *")
        weights.k, weights.n, weights.stages = k, n, scales.shape[0] if scales.ndim else 0
        weights.layout_version, weights.scale_scope = layout_version, scale_scope
        weights.activation_bits = activation_bits
        weights.packed, weights.packed_bytes = self._pointer(0, "uint8_t[]")
        weights.scales, weights.scales_count = self._pointer(1, "float[]")
        weights.row_multiplier, weights.row_multiplier_count = self._pointer(2, "float[]")
        weights.col_multiplier, weights.col_multiplier_count = self._pointer(3, "float[]")
        self._plan = ffi.new("f2i_plan *")
        message = ffi.new("f2i_message *")
        names = [(name or "").encode() for name in (kernel, isa, tuning)]
        _check(ffi, lib.f2i_plan_init_tuned(self._plan, weights, *names, message), message)

    def _pointer(self, index: int, kind: str) -> tuple[Any, int]:
        ffi, _ = _library()
        array = self._operands[index]
        if array is None:
            return ffi.NULL, 0
        buffer = ffi.from_buffer(kind, array)
        return buffer, array.size

    @property
    def kernel(self) -> KernelInfo:
        """The kernel this layer runs for one row of activations."""
        return next(iter(self.kernels.values()))

    @property
    def kernels(self) -> dict[int, KernelInfo]:
        """The kernels this layer runs, each by the least number of rows of activations; one unless it was asked for auto."""
        ffi, lib = _library()
        found: dict[int, KernelInfo] = {}
        info, following, rows = ffi.new("f2i_kernel_info *"), ffi.new("int64_t *"), 1
        while rows:
            _check(ffi, lib.f2i_plan_kernel_for(self._plan, rows, info, following), ffi.new("f2i_message *"))
            found[rows] = _kernel(ffi, info)
            rows = int(following[0])
        return found

    @property
    def tuning(self) -> str:
        """The settings this layer runs with, ``key=value`` separated by blanks (fairy2i.h)."""
        ffi, lib = _library()
        text = ffi.new("char[160]")
        lib.f2i_plan_tuning(self._plan, text, 160)
        return _text(ffi, text)

    def __call__(self, x: npt.ArrayLike, bias: F32 | None = None, *, threads: int = 1) -> F32:
        """Apply the layer.

        Args:
            x: [..., k], converted to float32.
            bias: float32 [n] or None.
            threads: the work items are dealt to this many Python threads (the library releases the GIL).

        Returns:
            float32 [..., n].
        """
        ffi, lib = _library()
        array = np.ascontiguousarray(x, np.float32)
        if array.ndim == 0 or array.shape[-1] != self.k:
            raise KernelError(f"x: expected shape [..., {self.k}], got {list(array.shape)}")
        if bias is not None and bias.shape != (self.n,):
            raise KernelError(f"bias: expected [{self.n}], got {list(bias.shape)}")
        rows = array.size // self.k
        y = np.empty((*array.shape[:-1], self.n), np.float32)
        message = ffi.new("f2i_message *")
        size = ffi.new("size_t *")
        _check(ffi, lib.f2i_workspace_size(self._plan, rows, size, message), message)
        workspace = np.empty(size[0], np.uint8)
        bias_buffer = ffi.NULL if bias is None else ffi.from_buffer("float[]", np.ascontiguousarray(bias, np.float32))
        pool = _ThreadPool(threads) if threads > 1 else None
        status = lib.f2i_matmul(
            self._plan,
            rows,
            ffi.from_buffer("float[]", array),
            self.k,
            bias_buffer,
            ffi.from_buffer("float[]", y),
            self.n,
            ffi.from_buffer(workspace),
            workspace.size,
            ffi.NULL if pool is None else pool.parallel,
            message,
        )
        _check(ffi, status, message)
        return y


def one_tile_layer(kernel: str | None = None, isa: str | None = None, tuning: str | None = None) -> Linear:
    """The smallest layer, 2 x 2 at one stage, to ask what a layer gets with a choice and this environment.

    Raises:
        KernelError: there is no such kernel or setting, or it cannot run here; the message says which can.
    """
    one_tile = np.zeros(512, np.uint8)
    return Linear(one_tile, np.ones((1, 2, 2), np.float32), 2, 2, kernel=kernel, isa=isa, tuning=tuning)


def chosen_kernels(kernel: str | None = None, isa: str | None = None, tuning: str | None = None) -> dict[int, KernelInfo]:
    """The kernels that a layer gets with a choice and this environment, each by the least number of rows of activations.

    They are asked of the library, not guessed. Those of a session need its settings (``kept_tuning``).

    Raises:
        KernelError: there is no such kernel, or it cannot run here; the message says which can.
    """
    return one_tile_layer(kernel, isa, tuning).kernels


def chosen_kernel(
    kernel: str | None = None, isa: str | None = None, tuning: str | None = None, *, rows: int = 1
) -> KernelInfo:
    """The one of :func:`chosen_kernels` that runs for this many rows of activations."""
    found = chosen_kernels(kernel, isa, tuning)
    return found[max(least for least in found if least <= rows)]


class _ThreadPool:
    """A f2i_parallel that deals work items to Python threads round robin: for tests, not for speed."""

    def __init__(self, threads: int) -> None:
        ffi, _ = _library()

        def run(_context: Any, task: Any, count: int, arg: Any) -> None:
            def work(first: int) -> None:
                for index in range(first, count, threads):
                    task(arg, index)

            workers = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        self._callback = ffi.callback("void(void *, f2i_task, size_t, void *)", run)  # alive as long as the struct
        self.parallel = ffi.new("f2i_parallel *", {"run": self._callback, "context": ffi.NULL})
