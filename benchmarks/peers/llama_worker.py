"""A worker that runs a GGUF file with llama.cpp: ``python llama_worker.py FILE THREADS CONTEXT`` (see worker_loop.py).

It calls llama.cpp's own functions (llama_decode), as llama-bench does: nothing of llama-cpp-python's Llama class lies between.
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from worker_loop import Run, serve

log: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def keep_log(_level: int, text: bytes, _data: Any) -> None:
    """What llama.cpp would print, which says where it put the weights."""
    log.append(text.decode(errors="replace"))


def start() -> tuple[dict[str, Any], Run]:
    """Load the model with the defaults of llama.cpp; weights are repacked where it has code for that."""
    path, threads, context = sys.argv[1:]
    llama_cpp.llama_log_set(keep_log, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"{path}: llama.cpp cannot load it: {''.join(log[-3:])}")
    trained = llama_cpp.llama_model_n_ctx_train(model)
    if trained < int(context):
        raise RuntimeError(f"{path}: prompt and new tokens are {context} together, more than its context of {trained}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = -(-int(context) // 256) * 256
    options.n_threads = options.n_threads_batch = int(threads)
    session = llama_cpp.llama_init_from_model(model, options)
    if not session:
        raise RuntimeError(f"{path}: llama.cpp makes no context of it: {''.join(log[-3:])}")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    memory = llama_cpp.llama_get_memory(session)

    def next_token(ids: list[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(session, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"{path}: llama_decode failed")
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(session, -1), (vocab,)).argmax())

    def run(prompt: list[int], new_tokens: int) -> tuple[float, float]:
        llama_cpp.llama_memory_clear(memory, True)
        begin = time.perf_counter()
        token = next_token(prompt)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = next_token([token])
        return first - begin, time.perf_counter() - first

    buffers = re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", "".join(log))
    system = llama_cpp.llama_print_system_info().decode()
    return {
        "vocab": vocab,
        "runs": f"llama-cpp-python {llama_cpp.__version__}",
        "buffers": {name: float(size) for name, size in buffers},  # MiB; what is repacked lies in CPU_REPACK
        "features": sorted(re.findall(r"(\w+) = 1", system)),
    }, run


if __name__ == "__main__":
    serve(start)
