"""Check the operator library and exported models with a list of onnxruntime releases, each in an environment of its own.

    python tests/large/onnxruntime_versions.py --work FOLDER [VERSION ...]

writes models of one node with every combination of optional inputs (given or not; absent ones as empty names or left off at
the end; float32 and float16; constant or as inputs of the graph; with the function body and without), the demo model and
a random Gemma 2 with every kind of key-value cache. It runs them all with every version in exact mode, nodes with a body also
without the library, and prints what does not load, crashes or is wrong. Exit code 1 if a node fails; a model may need a newer
onnxruntime than its nodes. Environments are made once below FOLDER, from PyPI. `make test-onnxruntime` sets up what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers" / "models"))

import fairy2i_runtime
import optional_inputs
from architecture_helpers import MIXED, PROMPT, random_ids, save_tiny
from fairy2i_export import export

VERSIONS = ("1.18.1", "1.20.1", "1.22.1", "1.23.2", "1.24.4", "1.26.0", "1.27.0")
NUMPY = "numpy==1.26.4"  # releases before 1.19 were built for numpy 1
DEMO = Path(__file__).resolve().parents[2] / "examples" / "models" / "stories260K-fairy2i-w2"
RUNNER = Path(__file__).with_name("run_saved_models.py")
NO_LIBRARY = "none"  # as run_saved_models.py has it
CACHES = ("float32", "float16", "int8")


def write_nodes(folder: Path) -> list[str]:
    """Models of one node each and what they shall give; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for case, model, feeds, expected in optional_inputs.models():
        save(model, folder / f"{case.name}.onnx")
        np.savez(folder / f"{case.name}.npz", **{f"in:{key}": v for key, v in feeds.items()}, **{"out:Y": expected})
        names.append(case.name)
    return names


def write_models(folder: Path) -> list[str]:
    """Exported models and what the onnxruntime of this environment makes of a prompt and the token after it."""
    names = []
    alone = np.array([[1, 403, 407, 261, 378, 300]], np.int64)
    for cache in CACHES:
        export(DEMO, folder / f"demo-{cache}", kv_cache=cache, force=True)
        names += write_steps(folder, f"demo-{cache}", alone, np.ones_like(alone))
    # windows and caps of scores, and texts of different length, padded on the left
    source = save_tiny(folder / "gemma2-source", "gemma2", query_pre_attn_scalar=24, **MIXED)
    ids = random_ids(3, PROMPT + 1)
    padding = np.arange(PROMPT + 1) < np.array([[0], [5], [9]])
    for cache in CACHES:
        export(source, folder / f"gemma2-{cache}", kv_cache=cache, trained=True, force=True)
        names += write_steps(folder, f"gemma2-{cache}", ids, (~padding).astype(np.int64))
    return names


def write_steps(folder: Path, name: str, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """Save inputs and logits of a prompt, all columns of ids but the last one, and of the last one, which reads the cache."""
    model = folder / name / "model.onnx"
    options = ort.SessionOptions()
    fairy2i_runtime.register(options)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
    past = {
        value.name: np.zeros((len(ids), value.shape[1], 0, value.shape[3]), kinds[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    prompt = ids.shape[1] - 1
    for step, part in (("prompt", slice(0, prompt)), ("next", slice(prompt, prompt + 1))):
        feeds = {"input_ids": ids[:, part], "attention_mask": mask[:, : part.stop], **past}
        logits, *present = session.run(None, feeds)
        logits[mask[:, part] == 0] = np.nan  # padding may give anything
        np.savez(model.with_name(f"{step}.npz"), **{f"in:{key}": v for key, v in feeds.items()}, **{"out:logits": logits})
        model.with_name(f"{step}.onnx").unlink(missing_ok=True)
        model.with_name(f"{step}.onnx").hardlink_to(model)
        past = dict(zip(past, present, strict=True))
    return [f"{name}/prompt", f"{name}/next"]


def environment(folder: Path, version: str) -> Path:
    """Python of an environment with that onnxruntime; made if it is not there."""
    python = folder / version / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / version)], check=True)
        packages = [f"onnxruntime=={version}", NUMPY]
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    return python


def run_all(python: Path, folder: Path, names: list[str], library: str) -> dict[str, float | str]:
    """Name -> relative error, or what went wrong. A model that ends the process counts; the rest is run in a new one."""
    results: dict[str, float | str] = {}
    left = names
    while left:
        done = subprocess.run([str(python), str(RUNNER), library, str(folder), *left], capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if not lines:
            raise SystemExit(f"{python} does not run {RUNNER.name}:\n{done.stderr}")
        results |= {line["name"]: line.get("problem", line.get("error")) for line in lines if "name" in line}
        left = left[sum("name" in line for line in lines) :]
        if left:
            results[left[0]] = f"the process ended with code {done.returncode}"
            left = left[1:]
    return results


def report(title: str, results: dict[str, float | str]) -> bool:
    """Print what one release makes of some models; whether all are right. Of problems that are alike one is shown."""
    right, problems = [], {}
    for name, result in results.items():
        limit = 2e-3 if any(part in name for part in ("half", "float16", "int8")) else 2e-5
        if isinstance(result, float) and result <= limit:
            right.append(result)
        else:
            text = (
                f"relative error {result:.2g}" if isinstance(result, float) else re.sub(r"Load model from \S+ ", "", result)
            )
            text = text if len(text) < 200 else f"{text[:40]} ... {text[-150:]}"
            problems.setdefault(text, name)
    print(f"{title}: {len(right)} of {len(results)} right, largest relative error {max(right, default=0):.1e}")
    for text, name in problems.items():
        print(f"    {name}: {text}")
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and models")
    options = parser.parse_args()
    os.environ["FAIRY2I_KERNEL"] = "exact"
    nodes = write_nodes(options.work / "nodes")
    bodies = [name for name in nodes if name.endswith("-body-six")]
    models = write_models(options.work / "models")
    library = fairy2i_runtime.library_path()
    good = True
    for version in options.versions:
        python = environment(options.work / "environments", version)
        good &= report(f"{version} nodes", run_all(python, options.work / "nodes", nodes, library))
        report(
            f"{version} function bodies, without the library", run_all(python, options.work / "nodes", bodies, NO_LIBRARY)
        )
        report(f"{version} models", run_all(python, options.work / "models", models, library))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
