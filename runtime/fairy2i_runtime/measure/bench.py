"""``fairy2i bench``: how fast a model is on this machine, measured in a fresh process and told with its spread."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import onnxruntime as ort

from fairy2i_runtime.engine.threads import check_threads, default_threads
from fairy2i_runtime.errors import Fairy2iRuntimeError, OptionError, check_option
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.measure.bench_worker import DONE
from fairy2i_runtime.ops import core
from fairy2i_runtime.ops.processor import processor_name
from fairy2i_runtime.ops.tuning import kept_tuning

MAX_REPEAT = 1000


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate, at least 2: the first comes out of the prompt's run, the others are decoded.
        repeat: measured repetitions, after one cold run.
        threads: threads of onnxruntime; None = the runtime's default.
        kernel: kernel family, or None.
        isa: instruction set, or None.
        trust_graph: as for :func:`fairy2i_runtime.load`.

    Raises:
        OptionError: if a number is out of range.
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    repeat: int = 5
    threads: int | None = None
    kernel: str | None = None
    isa: str | None = None
    trust_graph: bool = False

    def __post_init__(self) -> None:
        check_option("prompt_tokens", self.prompt_tokens, int, lambda n: n >= 1, "an integer of at least 1")
        check_option("new_tokens", self.new_tokens, int, lambda n: n >= 2, "an integer of at least 2")
        check_option("repeat", self.repeat, int, lambda n: 1 <= n <= MAX_REPEAT, f"an integer from 1 to {MAX_REPEAT}")
        if self.threads is not None:
            check_threads(self.threads)


def bench(folder: Path, options: BenchOptions, done: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Measure a model folder.

    Args:
        folder: the model folder.
        options: what to measure.
        done: called after the cold run and after every repetition.

    Returns:
        machine, configuration, prompt and decode (tokens per second: mean, standard deviation, smallest, largest, each
        repetition), first_token (seconds, warm and cold), load, memory. docs/tools.md describes every key.

    Raises:
        Fairy2iRuntimeError: if the folder does not load, or an option is impossible.
    """
    opened = open_folder(folder)
    wanted = options.prompt_tokens + options.new_tokens
    if wanted > opened.context_length:
        raise OptionError(
            f"--prompt-tokens {options.prompt_tokens} and --new-tokens {options.new_tokens} are {wanted} tokens together, more "
            f"than the model was built for ({opened.context_length}); measure fewer"
        )
    kernels: list[core.KernelInfo | None] = [None, None]
    if opened.needs_library:
        family = opened.kernel_to_run(options.kernel)
        tuning = kept_tuning(options.threads or default_threads(), options.isa)
        kernels = [core.chosen_kernel(family, options.isa, tuning, rows=rows) for rows in (1, options.prompt_tokens)]
    found = _in_fresh_process({"folder": str(folder), **vars(options)}, done)
    first = [run["first_token"] for run in found["runs"]]
    return {
        "model": str(folder),
        "machine": machine(),
        "configuration": {
            "threads": options.threads or default_threads() or None,
            **dict(zip(("kernel", "isa"), _names(kernels[0]), strict=True)),
            **dict(zip(("prompt_kernel", "prompt_isa"), _names(kernels[1]), strict=True)),
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "repeat": options.repeat,
            "onnxruntime": ort.__version__,
        },
        "prompt_tokens_per_second": statistics([options.prompt_tokens / seconds for seconds in first]),
        "decode_tokens_per_second": statistics([(options.new_tokens - 1) / run["decode"] for run in found["runs"]]),
        "first_token_seconds": statistics(first),
        "cold_first_token_seconds": found["cold"]["first_token"],
        "load_seconds": found["load_seconds"],
        "start_seconds": found["start_seconds"],
        "memory_loaded_bytes": found["memory_loaded"],
        "memory_bytes": found["memory"],
    }


def _names(kernel: core.KernelInfo | None) -> tuple[str | None, str | None]:
    return (None, None) if kernel is None else (kernel.family, kernel.isa)


def statistics(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; None for one value), smallest, largest, and the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def machine() -> dict[str, Any]:
    """Processor, its features that the library uses, logical processors this process may use, operating system."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor_name(),
        "cpu_features": core.library_info()["cpu_features"],
        "logical_processors": len(affinity(0)) if affinity else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _in_fresh_process(request: dict[str, Any], done: Callable[[], object]) -> dict[str, Any]:
    command = [sys.executable, "-m", "fairy2i_runtime.measure.bench_worker"]
    # it has to find this very package, however this process found it
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, encoding="utf-8", errors="replace", env=environment
    ) as worker:
        try:
            answer, code, error = _converse(worker, json.dumps({**request, "started": time.time()}), done)
        except BaseException:
            worker.kill()  # an interruption; if this process is killed itself, the worker finds its standard input closed
            raise
    if answer is None:
        last = (error.strip() or "no message").splitlines()[-1]
        raise Fairy2iRuntimeError(
            f"the process that measures ended with code {code}: {last}"
            + ("; out of memory? try fewer --prompt-tokens" if code == -9 else "")
        )
    if "error" in answer:
        raise Fairy2iRuntimeError(answer["error"])
    return answer


def _converse(
    worker: subprocess.Popen[str], request: str, done: Callable[[], object]
) -> tuple[dict[str, Any] | None, int, str]:
    """Ask the worker; its answer (None: it had none), its exit code, and what it said on standard error."""
    if worker.stdin is None or worker.stdout is None or worker.stderr is None:
        raise AssertionError("no pipes")
    said: list[str] = []
    listener = threading.Thread(target=lambda stream: said.append(stream.read()), args=[worker.stderr], daemon=True)
    listener.start()
    answer = None
    with suppress(BrokenPipeError):  # it has ended already
        worker.stdin.write(request + "\n")
        worker.stdin.flush()  # and stays open: the worker ends when it is closed
    for line in worker.stdout:
        with suppress(ValueError):  # what a library prints
            found = json.loads(line)
            if found == DONE:
                done()
            else:
                answer = found
    with suppress(BrokenPipeError):
        worker.stdin.close()
    code = worker.wait()
    listener.join()
    return answer if isinstance(answer, dict) else None, code, "".join(said)
