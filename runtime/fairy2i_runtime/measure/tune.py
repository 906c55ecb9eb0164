"""Find the settings that are fastest on this machine: what ``fairy2i tune`` does.

Everything is measured as it is used, in onnxruntime sessions of a model. Candidates take turns, each after every other one, so
that a slow moment of the machine meets all of them; a setting is changed only if it is faster by more than the noise.

1. ``lut``: each instruction set and variant of the look-up kernels that this processor runs, a token at a time.
2. ``alone``: which calls are too small to wake other threads for, a token at a time. With one thread there is nothing to choose.
3. ``dot`` and ``auto``: the same for the kernels that multiply, on a prompt; and from how many rows of activations on they are
   faster than ``lut``. Used where somebody asks for ``dot`` or ``auto``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.engine.graph.opening import checked_graph
from fairy2i_runtime.engine.session import open_session
from fairy2i_runtime.engine.threads import check_threads, default_threads
from fairy2i_runtime.errors import OptionError, check_option
from fairy2i_runtime.folder import ModelFolder, open_folder
from fairy2i_runtime.ops.core import kernels, one_tile_layer

TOKENS = 12  # of a measurement, one at a time
PROMPT = 64  # tokens of the prompt by which a kernel that multiplies is chosen
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # where that kernel may begin
ALONE = (0, 48 << 10, 128 << 10, 256 << 10, 512 << 10)  # bytes
GAIN = 0.03  # of the time, at least, for a setting other than the one without measuring
MOST_ROUNDS = 1000
_STOP_SPINNING = {"session.force_spinning_stop": "1"}  # threads of one candidate are not to disturb the next one


@dataclass(frozen=True)
class Trial:
    """One setting that was tried: which one, on what, seconds of each round, and whether it was taken."""

    setting: str
    on: str
    seconds: tuple[float, ...]
    taken: bool

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass
class Tuning:
    """What was found: the settings as text, and all that was tried for them."""

    threads: int
    text: str = ""
    trials: list[Trial] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        trials = [
            {
                "setting": trial.setting,
                "on": trial.on,
                "seconds": trial.median,
                "rounds": list(trial.seconds),
                "taken": trial.taken,
            }
            for trial in self.trials
        ]
        return {"threads": self.threads, "tuning": self.text, "trials": trials}


def rounds_of_tuning(rounds: int, threads: int) -> int:
    """How often :func:`tune` calls ``done``."""
    return rounds * (3 + (threads != 1))


def tune(
    folder: Path,
    *,
    threads: int | None = None,
    rounds: int = 7,
    trust_graph: bool = False,
    done: Callable[[], object] = lambda: None,
) -> Tuning:
    """Measure settings with a model folder; nothing is kept (:func:`fairy2i_runtime.ops.tuning.keep_tuning`).

    Args:
        folder: a model folder for the operator library.
        threads: threads of onnxruntime; None = the runtime's default.
        rounds: turns of every comparison.
        trust_graph: as for :func:`fairy2i_runtime.load`.
        done: called after every round.

    Raises:
        Fairy2iRuntimeError: if the folder does not load or has nothing to tune, or an option is impossible.
    """
    check_option("rounds", rounds, int, lambda n: 1 <= n <= MOST_ROUNDS, f"an integer from 1 to {MOST_ROUNDS}")
    if threads is not None:
        check_threads(threads)
    opened = open_folder(folder)
    if not opened.needs_library:
        raise OptionError(
            f"{folder} was exported for hosts without the operator library (--backend): there is nothing to tune"
        )
    if opened.context_length < PROMPT:
        raise OptionError(f"{folder}: expected a context of {PROMPT} tokens or more, found {opened.context_length}")
    contents = None if trust_graph else checked_graph(opened)
    used = default_threads() if threads is None else threads
    return _Tuner(opened, contents, used, rounds, done).run()


class _Tuner:
    def __init__(
        self, folder: ModelFolder, contents: bytes | None, threads: int, rounds: int, done: Callable[[], object]
    ) -> None:
        self._folder, self._contents, self._rounds, self._done = folder, contents, rounds, done
        self._found = Tuning(threads)

    def run(self) -> Tuning:
        settings = [self._choose("lut", [f"lut={isa}" for isa in _isas("lut")], 1)]
        if self._found.threads != 1:
            known = int(_known(settings)["alone"])
            candidates = [f"alone={size}" for size in (known, *(size for size in ALONE if size != known))]
            settings.append(self._choose("lut", candidates, 1, settings))
        settings.append(self._choose("dot", [f"dot={isa}" for isa in _isas("dot")], PROMPT, settings))
        settings.append(f"auto={self._first_rows(settings)}")
        self._found.text = " ".join(settings)
        return self._found

    def _decoder(self, kernel: str, settings: Sequence[str]) -> Decoder:
        session = open_session(
            self._folder.model_file,
            contents=self._contents,
            threads=self._found.threads or None,
            kernel=kernel,
            tuning=" ".join(settings),
            entries=_STOP_SPINNING,
        )
        return Decoder(session, self._folder.context_length, name=str(self._folder.model_file))

    def _choose(self, kernel: str, candidates: Sequence[str], rows: int, others: Sequence[str] = ()) -> str:
        """The fastest of some settings, the first one unless another one gains; ``others`` are settled."""
        decoders = [self._decoder(kernel, [*others, candidate]) for candidate in candidates]
        seconds = self._turns([partial(_seconds, decoder, rows) for decoder in decoders])
        best = min(range(len(candidates)), key=lambda i: median(seconds[i]))
        if median(seconds[best]) > (1 - GAIN) * median(seconds[0]):
            best = 0
        on = "a token" if rows == 1 else f"a prompt of {rows}"
        self._found.trials += [
            Trial(candidate, on, tuple(times), i == best)
            for i, (candidate, times) in enumerate(zip(candidates, seconds, strict=True))
        ]
        return candidates[best]

    def _first_rows(self, settings: Sequence[str]) -> int:
        """From how many rows on the kernel that multiplies is faster, for all that were tried; 0 if it never is."""
        lut, dot = (self._decoder(kernel, settings) for kernel in ("lut", "dot"))
        works = [partial(_seconds, decoder, rows) for rows in ROWS for decoder in (lut, dot)]
        seconds = self._turns(works)
        pairs = list(zip(seconds[::2], seconds[1::2], strict=True))
        first = 0
        for rows, (by_lut, by_dot) in reversed(list(zip(ROWS, pairs, strict=True))):
            if median(by_dot) > median(by_lut):
                break
            first = rows
        for rows, (by_lut, by_dot) in zip(ROWS, pairs, strict=True):
            on, is_dot = f"{rows} row{'s' * (rows > 1)}", 0 < first <= rows
            self._found.trials += [
                Trial("kernel lut", on, tuple(by_lut), not is_dot),
                Trial("kernel dot", on, tuple(by_dot), is_dot),
            ]
        return first

    def _turns(self, works: Sequence[Callable[[], float]]) -> list[list[float]]:
        """Seconds of each work in every round, after one that does not count; every round begins with another one."""
        seconds: list[list[float]] = [[] for _ in works]
        for number in range(self._rounds + 1):
            for place in range(len(works)):
                index = (place + number) % len(works)
                time_taken = works[index]()
                if number > 0:
                    seconds[index].append(time_taken)
            if number > 0:
                self._done()
        return seconds


def _seconds(decoder: Decoder, rows: int) -> float:
    """Seconds of one token, of several in turn, or of a prompt of ``rows`` tokens."""
    tokens = [1 + index % (decoder.vocab - 1) for index in range(rows)]
    repeat = TOKENS if rows == 1 else 1
    cache = decoder.new_cache(max(rows, repeat))
    start = time.perf_counter()
    for _ in range(repeat):
        decoder.next_logits(tokens, cache)
    return (time.perf_counter() - start) / repeat


def _isas(family: str) -> list[str]:
    """Instruction sets and variants that a family of kernels has here, the one that runs without measuring first.

    The slowest of all, ``scalar``, is none of them, unless there is no other.
    """
    here = [kernel for kernel in kernels() if kernel.family == family and kernel.available]
    here.sort(key=lambda kernel: not kernel.is_default)
    return [kernel.isa for kernel in here if kernel.isa != "scalar"] or [kernel.isa for kernel in here]


def _known(settings: Sequence[str]) -> dict[str, str]:
    """The settings that a layer gets, by name."""
    return dict(part.split("=") for part in one_tile_layer(tuning=" ".join(settings)).tuning.split())
