"""Runs a one-node model R times, then 2 R times, three times over: what nodes.py counts.

    repeat_node.py MODEL LIBRARY X Y R     LIBRARY: the operator library, or -; X: the input; Y: the result is written here

It is run by a Python for ARM that has numpy and onnxruntime alone. Before, between and after the blocks it calls getppid, where
count_plugin.c tells its count.
"""

from __future__ import annotations

import gc
import os
import sys

import numpy as np
import onnxruntime as ort

ROUNDS = 3  # a thread that onnxruntime has in the background may fall into one of them


def main() -> None:
    """Make a session with one thread and run it, with input and output bound once."""
    model, library, x_file, y_file, repeats = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library != "-":
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.load(x_file)))
    shape = [
        dimension if isinstance(dimension, int) else len(np.load(x_file)) for dimension in session.get_outputs()[0].shape
    ]
    y = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
    binding.bind_ortvalue_output("y", y)
    gc.disable()  # a collection would fall into one of two runs
    session.run_with_iobinding(binding)  # onnxruntime's arena gets its memory
    os.getppid()
    for times in (int(repeats), 2 * int(repeats)) * ROUNDS:
        for _ in range(times):
            session.run_with_iobinding(binding)
        os.getppid()
    np.save(y_file, y.numpy())


if __name__ == "__main__":
    main()
