"""Interleaved timing of whole models: every engine in a process of its own, one at a time, in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fairy2i_runtime
from linear.sweep import BenchmarkError

HERE = Path(__file__).resolve().parent
PAUSE = 0.1  # seconds before a turn: threads of the last one spin some milliseconds for more work before they sleep
WARM_UP = 4  # tokens that are generated before a turn is timed: threads awake, clock up, weights read once


@dataclass(frozen=True)
class Lengths:
    """Tokens: ``new`` ones are generated after a prompt of ``short``; a prompt of ``long`` is read for one token."""

    short: int = 64
    new: int = 64
    long: int = 512

    @property
    def context(self) -> int:
        return max(self.short + self.new, self.long + 1)


@dataclass(frozen=True)
class Contestant:
    """An engine with a model.

    Attributes:
        name: what tables call it.
        command: starts its worker, whose arguments THREADS and CONTEXT are filled in.
        file: the folder or file that it runs.
        kind: ``fairy2i``, ``llama`` or ``genai``.
    """

    name: str
    command: tuple[str, ...]
    file: Path
    kind: str


def fairy2i(folder: Path, kernel: str) -> Contestant:
    """A model folder with a kernel of the runtime."""
    command = (sys.executable, str(HERE / "fairy2i_worker.py"), str(folder), "THREADS", kernel, "CONTEXT")
    return Contestant(f"{folder.resolve().name} {kernel}", command, folder, "fairy2i")


def llama(gguf: Path, python: Path) -> Contestant:
    """A GGUF file with llama.cpp, by the Python that has llama-cpp-python."""
    command = (str(python), str(HERE / "llama_worker.py"), str(gguf), "THREADS", "CONTEXT")
    return Contestant(gguf.stem, command, gguf, "llama")


def genai(folder: Path) -> Contestant:
    """A folder that onnxruntime-genai's model builder wrote, with onnxruntime-genai."""
    command = (sys.executable, str(HERE / "genai_worker.py"), str(folder), "THREADS", "CONTEXT")
    return Contestant(folder.resolve().name, command, folder, "genai")


def check_python(python: Path) -> None:
    """Find out whether a Python has llama-cpp-python.

    Raises:
        BenchmarkError: it has not.
    """
    try:
        done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(
            f"--python {python}: expected a Python interpreter, cannot start it: {error.strerror}"
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BenchmarkError(
            f"--python {python}: expected a Python with llama-cpp-python ({last}); install it there (pip install llama-cpp-python) "
            "or name the Python of an environment that has it"
        )


class Worker:
    """A process that sleeps until it is asked, and ends when its standard input is closed.

    Attributes:
        ready: what it said of itself.
        idle: processor seconds that it took while it should have slept, the most between two answers.
    """

    def __init__(self, contestant: Contestant, threads: int, context: int) -> None:
        """Start it and wait until its model is loaded.

        Raises:
            BenchmarkError: if it cannot load it.
        """
        filled = {"THREADS": str(threads), "CONTEXT": str(context)}
        command = [filled.get(word, word) for word in contestant.command]
        # it has to find this very package, however this process found it
        package = str(Path(fairy2i_runtime.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._name, self.idle = contestant.name, 0.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """Read a prompt and generate: seconds to the first token, and of the others."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompt": list(prompt), "new": new_tokens}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said last is in the message
        answer = self._answer()
        self.idle = max(self.idle, answer["idle"])
        return answer["first"], answer["rest"]

    def resident_bytes(self) -> int | None:
        """Memory in use now, files that are mapped included; None where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise BenchmarkError(f"{self._name}: {answer['error']}")
        return dict(answer)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}: {said[-1] if said else 'no message'}"


def measure(
    contestants: Sequence[Contestant], threads: int, lengths: Lengths, rounds: int, note: Callable[[str], object]
) -> list[dict[str, Any]]:
    """A record of every contestant, with the seconds of every round.

    In a round each one has a turn, the next one first in the next round: a few tokens that are not timed, then ``lengths``.
    All are given the same token ids, random but the same every time.

    Raises:
        BenchmarkError: if one does not load or fails.
    """
    with ExitStack() as stack:
        workers: list[Worker] = []
        what = f"{threads} thread{'s' * (threads > 1)}"
        for contestant in contestants:
            note(f"{what}: loading {contestant.name}")
            workers.append(Worker(contestant, threads, lengths.context))
            stack.callback(workers[-1].close)
        vocab = min(worker.ready["vocab"] for worker in workers)
        ids = np.random.default_rng(0).integers(0, vocab, max(lengths.short, lengths.long)).tolist()
        short, long = ids[: lengths.short], ids[: lengths.long]
        seconds: list[dict[str, list[float]]] = [{"first": [], "decode": [], "prompt": []} for _ in workers]
        for number in range(-1, rounds):  # the first one is not kept
            note(f"{what}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warming up"))
            turn = max(0, number) % len(workers)
            order = [*range(turn, len(workers)), *range(turn)]
            for index in order:
                worker, kept = workers[index], seconds[index]
                time.sleep(PAUSE)
                worker.run(short, WARM_UP)
                first, decode = worker.run(short, lengths.new)
                prompt, _ = worker.run(long, 1)
                if number >= 0:
                    for name, value in (("first", first), ("decode", decode), ("prompt", prompt)):
                        kept[name].append(value)
        return [
            {
                "name": contestant.name,
                "threads": threads,
                "lengths": vars(lengths),
                "seconds": kept,
                "resident_bytes": worker.resident_bytes(),
                "idle_processor_seconds": worker.idle,
                "worker": worker.ready,
            }
            for contestant, worker, kept in zip(contestants, workers, seconds, strict=True)
        ]
