"""Interleaved timing: all engines of a shape take turns, with cold caches before every turn."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from linear import models
from linear.engines import FLOORS, Engine, FloorRunner, OrtRunner
from linear.shapes import MODELS, Shape
from linear.sweep import U8, Sweeper, huge_buffer

FEW_ROWS = 16  # up to here a run goes through all copies; beyond, arithmetic takes long enough with a few of them
FEW_BYTES = 16 << 20
MOST_COPIES = 512
LEAST_REPETITIONS = 3
WARM_UP_SECONDS = 0.5  # a shorter run is done twice before it is timed


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bytes: total weights of the copies of a layer, at least (for M up to 16).
        flush_bytes: size of the buffer that is read before every timed run, larger than the last level cache.
        repetitions: timed runs of each engine.
        longest: an engine whose single run takes longer than this many seconds is left out.
        seconds: stop repeating early (not below 3 runs of each engine) where the whole would take longer than this.
    """

    engines: list[Engine]
    shapes: list[Shape]
    rows: list[int]
    threads: list[int]
    bytes: int
    flush_bytes: int
    repetitions: int
    longest: float
    seconds: float
    folder: Path


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one layer: one number for each repetition."""

    engine: Engine
    rows: int
    threads: int
    shape: Shape
    ms: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def quartile_range(self) -> float:
        low, high = np.percentile(self.ms, [25, 75])
        return float(high - low)


def copies_of(engine: Engine, shape: Shape, rows: int, plan: Plan) -> int:
    """How many layers with different weights a run goes through."""
    layer_bytes = shape.weights // 4 if engine.engine in FLOORS else engine.kind.layer_bytes(shape)
    if rows > FEW_ROWS:
        return max(1, min(FEW_BYTES, plan.bytes) // layer_bytes) if layer_bytes > 1 << 20 else 16
    return min(MOST_COPIES, -(-plan.bytes // layer_bytes))


class _Files:
    """Weights and models of one shape, made when first asked for."""

    def __init__(self, shape: Shape, plan: Plan) -> None:
        self._shape, self._plan = shape, plan
        self.made: set[Path] = set()

    def data(self, engine: Engine) -> Path:
        path = self._plan.folder / f"{engine.kind.name}_{self._shape}.data"
        if path not in self.made:
            alike = [e for e in self._plan.engines if e.kind == engine.kind]
            copies = max(copies_of(e, self._shape, rows, self._plan) for e in alike for rows in self._plan.rows)
            models.write_weights(engine.kind, self._shape, copies, path)
            self.made.add(path)
        return path

    def model(self, engine: Engine, copies: int) -> Path:
        path = self._plan.folder / f"{engine.kind.name}_{self._shape}_{copies}.onnx"
        if path not in self.made:
            models.write_model(engine.kind, self._shape, copies, self.data(engine), path)
            self.made.add(path)
        return path

    def delete(self) -> None:
        for path in self.made:
            path.unlink()


class _Steps:
    """Shares the seconds of a plan among its steps, a step being a shape, a number of threads and an M."""

    def __init__(self, plan: Plan) -> None:
        self._start, self._seconds, self._done = time.monotonic(), plan.seconds, 0
        self._steps = len(plan.shapes) * len(plan.threads) * len(plan.rows)

    def next_deadline(self) -> float:
        self._done += 1
        return self._start + self._seconds * self._done / self._steps


def measure(plan: Plan, note: Callable[[str], None]) -> Iterator[Timing]:
    """All timings of a plan, shape by shape. ``note`` gets a line for every step."""
    flush = huge_buffer(plan.flush_bytes)
    steps = _Steps(plan)
    for shape in plan.shapes:
        files = _Files(shape, plan)
        try:
            for threads in plan.threads:
                for many in (False, True):
                    rows = [r for r in plan.rows if (r > FEW_ROWS) == many]
                    if rows:
                        yield from _measure_shape(plan, shape, threads, rows, files, flush, steps, note)
                    gc.collect()
        finally:
            files.delete()


def _measure_shape(
    plan: Plan,
    shape: Shape,
    threads: int,
    all_rows: list[int],
    files: _Files,
    flush: U8,
    steps: _Steps,
    note: Callable[[str], None],
) -> Iterator[Timing]:
    note(f"{shape}, {threads} thread{'s' * (threads > 1)}: sessions")
    copies = {e: copies_of(e, shape, all_rows[0], plan) for e in plan.engines}
    runners: dict[Engine, OrtRunner | FloorRunner] = {}
    for engine, count in copies.items():
        if engine.engine in FLOORS:
            runners[engine] = FloorRunner(engine, shape, files.data(engine), count, threads)
        else:
            runners[engine] = OrtRunner(engine, shape, files.model(engine, count), count, threads)
    evict = Sweeper(threads)
    for rows in all_rows:
        note(f"{shape}, {threads} thread{'s' * (threads > 1)}, M={rows}")
        taking_part = []
        for engine, runner in runners.items():
            runner.prepare(rows)
            first = runner.run()
            if first < WARM_UP_SECONDS:
                runner.run()
            if isinstance(runner, OrtRunner):
                runner.check()
            if first > plan.longest:
                note(f"left out: {engine} takes {first:.1f} s for one run (see --longest)")
            else:
                taking_part.append(engine)
        seconds: dict[Engine, list[float]] = {engine: [] for engine in taking_part}
        deadline = steps.next_deadline()
        for repetition in range(plan.repetitions):
            if repetition >= LEAST_REPETITIONS and time.monotonic() > deadline:
                note(f"out of time: {repetition} repetitions")
                break
            turn = repetition % max(1, len(taking_part))
            for engine in taking_part[turn:] + taking_part[:turn]:
                evict.run(flush)
                seconds[engine].append(runners[engine].run())
        for engine in taking_part:
            yield Timing(engine, rows, threads, shape, [1e3 * s / copies[engine] for s in seconds[engine]])
    evict.close()
    for runner in runners.values():
        if isinstance(runner, FloorRunner):
            runner.close()


def records(timings: list[Timing]) -> list[dict[str, object]]:
    """One record for each timing, and one for each model all of whose shapes were measured.

    ``gweights_s`` counts weights times rows of activations for each second; ``vs_ort_q2`` is the time of MatMulNBits
    2-bit divided by the time of the engine.
    """
    table: dict[tuple[Engine, int, int, str], tuple[float, float, int]] = {}
    for t in timings:
        table[t.engine, t.rows, t.threads, str(t.shape)] = (t.median, t.quartile_range, t.shape.weights)
    for name, layers in MODELS.items():
        for engine, rows, threads in dict.fromkeys((t.engine, t.rows, t.threads) for t in timings):
            parts = [(count, table.get((engine, rows, threads, str(shape)))) for shape, count in layers.items()]
            known = [(count, part) for count, part in parts if part is not None]
            if len(known) == len(parts):
                ms, spread, weights = (sum(count * part[i] for count, part in known) for i in range(3))
                table[engine, rows, threads, name] = (ms, spread, int(weights))
    times = {(e.engine, rows, threads, shape): row[0] for (e, rows, threads, shape), row in table.items()}
    result: list[dict[str, object]] = []
    for (engine, rows, threads, shape_name), (ms, spread, weights) in table.items():
        floor, q2 = times.get(("floor", rows, threads, shape_name)), times.get(("ort-q2", rows, threads, shape_name))
        result.append({
            "engine": engine.engine, "kernel": engine.kernel, "isa": engine.isa,
            "M": rows, "threads": threads, "shape": shape_name,
            "ms": ms, "spread": spread / ms, "gweights_s": weights * rows / ms / 1e6,
            "floor_pct": None if floor is None else 100 * floor / ms,
            "vs_ort_q2": None if q2 is None else q2 / ms,
            "machine": machine(),
        })  # fmt: skip
    return result


def machine() -> str:
    """Processor, number of processors, and the version of onnxruntime."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} processors, onnxruntime {ort.__version__}"
