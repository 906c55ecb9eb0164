"""What is timed: onnxruntime sessions of the same options, and the memory floor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from fairy2i_runtime import core, register
from linear.models import LayerKind
from linear.shapes import Shape
from linear.sweep import STREAMS, U8, BenchmarkError, Sweeper, checksum, huge_buffer

BASELINES = {"ort-q2": "q2", "ort-q4": "q4", "ort-f32": "f32"}
STOCK = {**BASELINES, "ort-ternary": "ternary4", "ort-ternary-exact": "ternary0"}  # all of ONNX Runtime's own operators
FLOORS = ("floor", "floor-adds", "floor-huge")


@dataclass(frozen=True)
class Engine:
    """One row of the result.

    Attributes:
        engine: ``fairy2i``, ``ort-q2``, ``ort-q4``, ``ort-f32``, ``ort-ternary``, ``ort-ternary-exact``,
            ``floor``, ``floor-adds`` or ``floor-huge``.
        kernel: kernel family of fairy2i, or what the engine runs.
        isa: instruction set of the fairy2i kernel, as the library reports it; empty for others.
    """

    engine: str
    kernel: str
    isa: str = ""

    @property
    def kind(self) -> LayerKind:
        return LayerKind(STOCK.get(self.engine, "fairy2i"))

    def __str__(self) -> str:
        return f"{self.engine} {self.kernel} {self.isa}".rstrip() if self.engine == "fairy2i" else self.engine


def parse(name: str, isa: str | None = None) -> Engine:
    """An engine from its name; fairy2i kernels are named ``lut``, ``dot``, ``exact``, ``auto``, or with an ISA: ``lut:avx2``.

    Raises:
        KernelError: if the library has no such kernel, or this processor cannot run it.
    """
    if name in STOCK:
        return Engine(name, "MatMul" if name == "ort-f32" else "MatMulNBits")
    if name in FLOORS:
        return Engine(name, "sweep")
    family, _, own_isa = name.partition(":")
    codes, scales = np.zeros(1024, np.uint8), np.ones((2, 2, 2), np.float32)
    chosen = core.Linear(codes, scales, 4, 4, kernel=family, isa=own_isa or isa)
    if len(chosen.kernels) > 1:  # each with an ISA of its own
        return Engine("fairy2i", family, own_isa or isa or "")
    return Engine("fairy2i", chosen.kernel.family, chosen.kernel.isa)


class Runner(Protocol):
    """An engine with its weights."""

    def prepare(self, rows: int) -> None: ...
    def run(self) -> float:
        """One pass over all copies of the layer, in seconds."""


class OrtRunner:
    """A session over a model of :func:`models.write_model`."""

    def __init__(self, engine: Engine, shape: Shape, model: Path, copies: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # idle worker threads of one session must not take the processors of the next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if engine.engine == "fairy2i":
            options.add_session_config_entry("fairy2i.kernel", engine.kernel)
            options.add_session_config_entry("fairy2i.isa", engine.isa)
            register(options)
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._shape, self._copies = shape, copies

    def prepare(self, rows: int) -> None:
        rng = np.random.default_rng(1)
        self._x = rng.standard_normal((rows, self._shape.k)).astype(np.float32)
        self._y = np.zeros((self._copies, rows, self._shape.n), np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_input("x", "cpu", 0, np.float32, self._x.shape, self._x.ctypes.data)
        for copy, y in enumerate(self._y):
            self._binding.bind_output(f"y{copy}", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run(self) -> float:
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        return time.perf_counter() - start

    def check(self) -> None:
        """Every layer must have written numbers."""
        if not (np.isfinite(self._y).all() and (np.abs(self._y).max(axis=(1, 2)) > 0).all()):
            raise BenchmarkError("a layer wrote zeros, NaN or infinities: this is not the operator that was to be timed")


class FloorRunner:
    """Sweeps over 2.000 bits for each weight: of the file that the fairy2i sessions map, or of anonymous huge pages.

    ``floor-adds`` does as much arithmetic on them as a look-up kernel, but no look-ups and no outputs.
    """

    def __init__(self, engine: Engine, shape: Shape, data: Path, copies: int, threads: int) -> None:
        size = copies * shape.weights // 4 // 8 * 8
        self._data: U8 = (
            huge_buffer(size) if engine.engine == "floor-huge" else np.memmap(data, np.uint8, "r", shape=(size,))
        )
        self._adds = engine.engine == "floor-adds"
        self._sweeper = Sweeper(threads)
        self._expected = checksum(self._data)
        self._streams = STREAMS[0]

    def prepare(self, rows: int) -> None:
        """Find the number of address streams that reads fastest (of 5, best of 3 passes each)."""
        best = {}
        for streams in STREAMS:
            self._streams = streams
            best[streams] = min(self.run() for _ in range(3))
        self._streams = min(best, key=lambda streams: best[streams])

    def run(self) -> float:
        start = time.perf_counter()
        found = self._sweeper.run(self._data, self._streams, adds=self._adds)
        seconds = time.perf_counter() - start
        if found != self._expected:
            raise BenchmarkError("the memory sweep did not read all bytes")
        return seconds

    def close(self) -> None:
        self._sweeper.close()
