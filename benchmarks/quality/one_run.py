"""One run of compare.py in a process of its own: ``one_run.py TASK_JSON OUT`` trains into OUT and writes OUT.json."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from perplexities import in_onnxruntime, in_torch, windows_of

from fairy2i_export import export
from fairy2i_runtime.measure.perplexity import Perplexity

KERNELS = ("exact", "lut", "dot")


def main(task: dict[str, Any], out: Path) -> None:
    """Train if the run is trained, export if it is exported, measure, write the result."""
    run, setting = task["run"], task["setting"]
    source = Path(setting["source"])
    text = Path(setting["eval"]).read_text(encoding="utf-8")
    windows = windows_of(source, text, setting["context"], setting["eval_tokens"], setting["separator"])
    result: dict[str, Any] = {**task, "tokens": 0, "train_seconds": 0.0, "curve": []}
    checkpoint = source
    if run["recipe"] is not None:
        from fairy2i_export.train import train
        from fairy2i_export.train.recipe import Recipe

        options = {**task["shared"], **run["recipe"], "seed": 42 + task["seed"]}
        if setting["max_tokens"] is not None:
            options["max_tokens"] = setting["max_tokens"]
        if options.pop("from_calibrated", False):
            options["from_calibrated"] = str(calibrated_start(source, options.pop("stages"), setting, out.parent))
        texts = {"data": tuple(setting["data"]), "eval_data": (setting["eval"],)}
        recipe = Recipe(source=str(source), output=out, quiet=True, **texts, **options)
        if not (out / "training_log.json").exists():  # else it was trained, and interrupted while it was measured
            result["train_seconds"] = train(recipe).seconds
        log = json.loads((out / "training_log.json").read_text(encoding="utf-8"))
        checkpoint = out
        result |= {"tokens": log["tokens"], "curve": log["history"]}
        if run["recipe"].get("method", "fairy2i") == "fairy2i" and task["seed"] == 0:  # does not depend on the seed
            if "from_calibrated" in options:
                result["untrained"] = summary(in_onnxruntime(Path(options["from_calibrated"]), windows, "exact"))
            else:
                result["untrained"] = summary(untrained_loss(source, run["recipe"], options, windows, out))
    if run["export"] is None:
        measured = in_torch(checkpoint, windows)
        result["engine"] = "torch"
    else:
        folder = out.with_name(out.name + "-onnx")
        began = time.perf_counter()
        export(str(checkpoint), folder, **export_options(run["export"], setting), force=True)
        result["export_seconds"] = time.perf_counter() - began
        by_kernel = {kernel: in_onnxruntime(folder, windows, kernel) for kernel in KERNELS}
        measured = by_kernel["lut"]
        result["engine"] = "onnxruntime"
        result["kernels"] = {kernel: summary(found) for kernel, found in by_kernel.items()}
        if run["recipe"] is not None:
            result["torch"] = summary(in_torch(checkpoint, windows))
    result |= summary(measured)
    result["protocol"] = measured.windows.statement
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out.with_name(out.name + ".json"))


def calibrated_start(source: Path, stages: int, setting: dict[str, Any], folder: Path) -> Path:
    """The calibrated model that runs of an experiment start from, made by the first of them."""
    made = folder / f"calibrated-start-{stages}-onnx"
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            export(str(source), made, **export_options({"calibrate": True, "stages": stages}, setting))
    return made


def untrained_loss(source: Path, recipe: dict[str, Any], options: dict[str, Any], windows: Any, out: Path) -> Perplexity:
    """The source exported with the quantizer of the run, before any training."""
    given = {key: recipe[key] for key in ("stages", "quantizer", "row_multiplier") if key in recipe}
    if given.get("row_multiplier") == "learned":
        given["row_multiplier"] = "rms"  # where learning starts
    if options.get("skip_lm_head"):
        given["lm_head"] = "float"
    folder = out.with_name(out.name + "-untrained")
    export(str(source), folder, **given, force=True)
    return in_onnxruntime(folder, windows, "exact")


def export_options(given: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """``calibrate`` becomes the text of the setting."""
    options = dict(given)
    if options.pop("calibrate", False):
        options["calibrate"] = [setting["calibrate"]]
    return options


def summary(found: Perplexity) -> dict[str, float]:
    """What is kept of a measurement."""
    return {"loss": found.loss, "loss_error": found.loss_error, "perplexity": found.perplexity}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
