"""A worker that runs a model folder: ``python fairy2i_worker.py FOLDER THREADS KERNEL CONTEXT`` (see worker_loop.py)."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from worker_loop import Run, serve

from fairy2i_runtime import core, load
from fairy2i_runtime.errors import Fairy2iWarning
from fairy2i_runtime.measure.bench_worker import run_once
from fairy2i_runtime.ops.tuning import kept_tuning


def start() -> tuple[dict[str, Any], Run]:
    """Load the model; what is run, as the library and the folder say."""
    folder, threads, kernel, context = sys.argv[1:]
    warnings.simplefilter("ignore", Fairy2iWarning)
    model = load(folder, threads=int(threads), kernel=kernel, context_length=int(context))
    kernels = [
        f"{found.family} {found.isa}" for found in core.chosen_kernels(kernel, tuning=kept_tuning(int(threads))).values()
    ]

    def run(prompt: list[int], new_tokens: int) -> tuple[float, float]:
        seconds = run_once(model.decoder, prompt, new_tokens)  # as fairy2i bench
        return seconds["first_token"], seconds["decode"]

    said = {key.removeprefix("fairy2i."): value for key, value in model.metadata.items()}
    kept = {key: said[key] for key in ("stages", "bits", "lm_head", "kv_cache") if key in said}
    return {"vocab": model.decoder.vocab, "runs": ", ".join(kernels), "stored": kept}, run


if __name__ == "__main__":
    serve(start)
