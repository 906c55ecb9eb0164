"""Check the operator library and an exported model with a list of onnxruntime releases, each in an environment of its own.

    python tests/large/onnxruntime_versions.py --work FOLDER [VERSION ...]

writes models of one node with every combination of optional inputs (given or not; absent ones as empty names or left off at
the end; float32 and float16; constant or as inputs of the graph; with the function body and without), and the demo model
exported in every kind of key-value cache. It runs them all with every version in exact mode and prints what does not load,
crashes or is wrong. Exit code 1 if a node fails; a model may need a newer onnxruntime than its nodes. Environments are made
once below FOLDER, from PyPI. Needs an installed fairy2i-export: `make test-onnxruntime`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

import fairy2i_runtime
from fairy2i_export import export, quantize
from fairy2i_export.graph.function import DOMAIN, INPUTS, OP_NAME, OPSET, matmul_function
from fairy2i_export.layout import pack

VERSIONS = ("1.18.1", "1.20.1", "1.22.1", "1.23.2", "1.24.4")
NUMPY = "numpy==1.26.4"  # releases before 1.19 were built for numpy 1
DEMO = Path(__file__).resolve().parents[2] / "examples" / "models" / "stories260K-fairy2i-w2"
RUNNER = Path(__file__).with_name("run_saved_models.py")
OPTIONAL = INPUTS[3:]
CACHES = ("float32", "float16", "int8")
N, K, STAGES = 70, 66, 2


def write_nodes(folder: Path) -> list[str]:
    """Models of one node each and what they shall give; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((N, K)), STAGES)
    p = pack(q)
    names = []
    for count in range(len(OPTIONAL) + 1):
        for given in itertools.combinations(OPTIONAL, count):
            for half, free, body, short in itertools.product((False, True), repeat=4):
                if short and OPTIONAL[-1] in given:
                    continue  # nothing to leave off
                operands = {"packed": p.packed, "scales": p.scales}
                for name in given:
                    kind = np.float16 if half and name == "bias" else np.float32
                    operands[name] = rng.uniform(0.5, 2, K if name == "col_multiplier" else N).astype(kind)
                x = rng.standard_normal((3, K)).astype(np.float16 if half else np.float32)
                y = x.astype(np.float64) * operands.get("col_multiplier", 1)
                y = y @ q.dequantize("none").astype(np.float64).T * operands.get("row_multiplier", 1) + operands.get("bias", 0)
                parts = ("+".join(given) or "none", "half" if half else "float", "inputs" if free else "constants",
                         "body" if body else "nobody", "short" if short else "six")  # fmt: skip
                names.append("-".join(parts))
                model = one_node(operands, half=half, free=free, body=body, short=short)
                save(model, folder / f"{names[-1]}.onnx")
                feeds = {f"in:{key}": array for key, array in operands.items() if free}
                np.savez(folder / f"{names[-1]}.npz", **{"in:X": x, "out:Y": y, **feeds})
    return names


def one_node(operands: dict[str, np.ndarray], *, half: bool, free: bool, body: bool, short: bool) -> ModelProto:
    """A node whose operands are initializers or, ``free``, inputs of the graph; ``short``: no empty names at the end."""
    inputs = ["X", *(name if name in operands else "" for name in INPUTS[1:])]
    while short and not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        OP_NAME, inputs, ["Y"], name="node", domain=DOMAIN, K=K, N=N, stages=STAGES, layout_version=1, scale_scope=0
    )
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    values = [helper.make_tensor_value_info("X", kind, ["rows", K])]
    if free:
        values += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in operands.items()
        ]
    graph = helper.make_graph(
        [node],
        "node",
        values,
        [helper.make_tensor_value_info("Y", kind, ["rows", N])],
        [] if free else [numpy_helper.from_array(array, name) for name, array in operands.items()],
    )
    functions = [ir.serde.serialize_function(matmul_function(STAGES))] if body else []
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def write_models(folder: Path) -> list[str]:
    """The demo model with every kind of cache, and what the onnxruntime of this environment makes of a prompt."""
    names = []
    for cache in CACHES:
        name = f"demo-{cache}"
        target = folder / name
        export(DEMO, target, kv_cache=cache, force=True)
        model = target / "model.onnx"
        options = ort.SessionOptions()
        fairy2i_runtime.register(options)
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        ids = np.array([[1, 403, 407, 261, 378]], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
        for value in session.get_inputs()[2:]:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), kinds[value.type])
        outputs = [value.name for value in session.get_outputs()]
        present = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        # a second run continues the first, so that the cache is read as well
        following = {"input_ids": np.array([[300]]), "attention_mask": np.ones((1, ids.size + 1), np.int64)}
        following |= {key: present[key.replace("past_key_values", "present")] for key in feeds if key.startswith("past")}
        second = dict(zip(outputs, session.run(outputs, following), strict=True))
        for step, given, logits in (("prompt", feeds, present), ("next", following, second)):
            file = target / f"{step}.npz"
            np.savez(file, **{f"in:{k}": v for k, v in given.items()}, **{"out:logits": logits["logits"]})
            (target / f"{step}.onnx").unlink(missing_ok=True)
            (target / f"{step}.onnx").hardlink_to(model)
            names.append(f"{name}/{step}")
    return names


def environment(folder: Path, version: str) -> Path:
    """Python of an environment with that onnxruntime; made if it is not there."""
    python = folder / version / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / version)], check=True)
        packages = [f"onnxruntime=={version}", NUMPY]
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    return python


def run_all(python: Path, folder: Path, names: list[str], limit: float) -> dict[str, str]:
    """Name -> what went wrong. A model that ends the process counts; the rest is run in a new one."""
    problems: dict[str, str] = {}
    left = names
    while left:
        command = [str(python), str(RUNNER), fairy2i_runtime.library_path(), str(folder), *left]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results = [line for line in lines if "name" in line]
        for line in results:
            if "problem" in line:
                problems[line["name"]] = line["problem"]
            elif not line["error"] <= limit:
                problems[line["name"]] = f"relative error {line['error']:.2g}"
        left = left[len(results) :]
        if left and not lines:
            raise SystemExit(f"{python} does not run {RUNNER.name}:\n{done.stderr}")
        if left:
            problems[left[0]] = f"the process ended with code {done.returncode}"
            left = left[1:]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and models")
    parser.add_argument("--all", action="store_true", help="print every problem, not one of each kind")
    options = parser.parse_args()
    os.environ["FAIRY2I_KERNEL"] = "exact"
    nodes = write_nodes(options.work / "nodes")
    models = write_models(options.work / "models")
    failed = False
    for version in options.versions:
        python = environment(options.work / "environments", version)
        for folder, names, limit in (("nodes", nodes, 2e-3), ("models", models, 5e-3)):
            problems = run_all(python, options.work / folder, names, limit)
            failed |= bool(problems) and folder == "nodes"
            print(f"onnxruntime {version}: {folder}: {len(names) - len(problems)} of {len(names)} right")
            seen: set[str] = set()
            for name, problem in problems.items():
                if options.all or problem not in seen:
                    print(f"  {name}: {problem[:300]}")
                seen.add(problem)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
