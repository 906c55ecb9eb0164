"""Measures one model in a process of its own: ``python -m fairy2i_runtime.measure.bench_worker`` with a request in JSON on stdin.

The process is fresh, so that load time and memory are those of a program that does nothing else. It answers with lines of JSON
on stdout: ``"done"`` after each run, in the end the measurements, or ``{"error": message}`` for what a user can repair. It lives
as long as its standard input is open, which a parent that ends closes in whichever way it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.errors import Fairy2iRuntimeError, Fairy2iWarning
from fairy2i_runtime.model import load

DONE = "done"  # said after every run


def run_once(decoder: Decoder, prompt: list[int], new_tokens: int) -> dict[str, float]:
    """Read a prompt and generate greedily, end-of-text tokens ignored; seconds of the two parts.

    Returns:
        first_token: from the prompt to the first new token; decode: the ``new_tokens - 1`` runs that follow it.
    """
    cache = decoder.new_cache(len(prompt) + new_tokens)
    start = time.perf_counter()
    token = int(decoder.next_logits(prompt, cache).argmax())
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = int(decoder.next_logits([token], cache).argmax())
    return {"first_token": first - start, "decode": time.perf_counter() - first}


def memory() -> dict[str, int | None]:
    """Memory of this process in bytes: resident now, of which private and mapped from files, and the largest so far.

    Linux tells all of them, other systems at most the peak; None is what is not told.
    """
    found: dict[str, int | None] = dict.fromkeys(("resident", "private", "mapped", "peak"))
    names = {"VmRSS": "resident", "RssAnon": "private", "RssFile": "mapped", "VmHWM": "peak"}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key in names:
            found[names[key]] = 1024 * int(value.split()[0])
    if found["peak"] is None:
        try:
            import resource
        except ImportError:  # Windows
            return found
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak"] = peak if sys.platform == "darwin" else 1024 * peak
    return found


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Do what was asked for: load, one cold run, then the repetitions."""
    start_seconds = time.time() - request["started"]  # wall clocks: the parent's perf_counter may have another origin
    begin = time.perf_counter()
    model = load(
        request["folder"],
        threads=request["threads"],
        kernel=request["kernel"],
        isa=request["isa"],
        context_length=request["prompt_tokens"] + request["new_tokens"],
        trust_graph=request["trust_graph"],
    )
    loaded = time.perf_counter()
    memory_loaded = memory()
    # the tokens do not matter for the time; the same ones every time
    prompt = np.random.default_rng(0).integers(0, model.decoder.vocab, request["prompt_tokens"]).tolist()
    runs = []
    for _ in range(1 + request["repeat"]):
        runs.append(run_once(model.decoder, prompt, request["new_tokens"]))
        print(json.dumps(DONE), flush=True)
    cold, *runs = runs
    return {
        "start_seconds": start_seconds,
        "load_seconds": loaded - begin,
        "cold": cold,
        "runs": runs,
        "memory_loaded": memory_loaded,
        "memory": memory(),
    }


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def main() -> int:
    """Answer the request on stdin; returns the exit code."""
    warnings.simplefilter("ignore", Fairy2iWarning)  # whoever started this process has said it already
    with suppress(ValueError, AttributeError):  # Ctrl-C in a terminal goes to all processes; the parent tells this one
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        answer = measure(request)
    except Fairy2iRuntimeError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
