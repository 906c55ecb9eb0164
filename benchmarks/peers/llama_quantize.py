"""Quantize a GGUF file as llama-quantize does, by llama-cpp-python: ``python llama_quantize.py SOURCE TARGET TYPE``.

Some types refuse to be made without an importance matrix; as nothing but speed is measured, all entries of theirs are one.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp
import numpy as np

NEED_MATRIX = ("IQ1", "IQ2", "IQ3_XXS", "Q2_K_S")


def ones(columns: dict[str, int]) -> tuple[Any, list[np.ndarray[Any, np.dtype[np.float32]]]]:
    """An importance matrix, and the memory that it points to: a one per column of every tensor, the end marked by no name."""
    entry = llama_cpp.llama_model_imatrix_data
    values = [np.ones(count, np.float32) for count in columns.values()]
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        entry(name.encode(), value.ctypes.data_as(pointer), value.size) for name, value in zip(columns, values, strict=True)
    ]
    return (entry * (len(entries) + 1))(*entries, entry()), values


def main(source: str, target: str, kind: str) -> int:
    """Quantize; standard input has the columns of every tensor by name, in JSON. Returns llama.cpp's code, 0 for success."""
    number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if number is None:
        print(f"llama.cpp of llama-cpp-python {llama_cpp.__version__} has no type {kind}", file=sys.stderr)
        return 2
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = number, 1
    if kind.startswith(NEED_MATRIX):
        matrix, _memory = ones(json.load(sys.stdin))
        options.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    code: int = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
