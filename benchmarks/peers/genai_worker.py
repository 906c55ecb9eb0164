"""A worker that runs a folder of onnxruntime-genai's model builder: ``python genai_worker.py FOLDER THREADS CONTEXT``.

onnxruntime-genai chooses tokens itself: a greedy search that may not end before its last token. See worker_loop.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from worker_loop import Run, serve


def start() -> tuple[dict[str, Any], Run]:
    """Load the model."""
    folder, threads, context = sys.argv[1:]
    described = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))["model"]
    if described["context_length"] < int(context):
        raise RuntimeError(
            f"prompt and new tokens are {context} together, more than its context of {described['context_length']}"
        )
    config = og.Config(folder)
    options = {"intra_op_num_threads": int(threads), "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def run(prompt: list[int], new_tokens: int) -> tuple[float, float]:
        length = len(prompt) + new_tokens
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = og.Generator(model, parameters)
        tokens = np.array([prompt], np.int32)
        begin = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        rest = time.perf_counter() - first
        found = len(generator.get_sequence(0))
        if found != length:
            raise RuntimeError(f"expected {length} tokens, onnxruntime-genai made {found}")
        return first - begin, rest

    return {"vocab": described["vocab_size"], "runs": f"onnxruntime-genai {og.__version__}"}, run


if __name__ == "__main__":
    serve(start)
