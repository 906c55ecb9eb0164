"""Run saved models with the onnxruntime that is installed, and print one line of JSON per model.

Needs numpy and onnxruntime only, so that it runs in the environments of onnxruntime_versions.py. Usage:
run_saved_models.py LIBRARY FOLDER NAME... ; LIBRARY may be "none". FOLDER holds NAME.onnx and NAME.npz with the inputs
``in:...`` and the expected outputs ``out:...``, NaN where anything may come. "start" lines come before a model is opened, so
that the caller knows which one ended the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(library: str, path: Path) -> float:
    """Largest relative error, in the 2-norm, of the outputs of one model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    disabled = []
    if library != "none":
        options.register_custom_ops_library(library)
    else:
        disabled.append("ConstantFolding")  # would unpack all weights at once
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    with np.load(path.with_suffix(".npz")) as arrays:
        feeds = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in:")}
        expected = {key[4:]: arrays[key].astype(np.float64) for key in arrays.files if key.startswith("out:")}
    found = session.run(list(expected), feeds)
    return max(
        float(np.linalg.norm((y.astype(np.float64) - e)[~np.isnan(e)]) / np.linalg.norm(e[~np.isnan(e)]))
        for y, e in zip(found, expected.values(), strict=True)
    )


def main(library: str, folder: str, *names: str) -> None:
    for name in names:
        print(json.dumps({"start": name}), flush=True)
        try:
            result = {"name": name, "error": run(library, Path(folder) / f"{name}.onnx")}
        except Exception as problem:  # onnxruntime's exception classes have no common base
            result = {"name": name, "problem": str(problem)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
