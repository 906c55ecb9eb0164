"""A program that runs an export for every line on standard input, in a copy of itself that is killed at a named point.

An export of a checkpoint, or of an .onnx file that is rewritten. A line is {"source": ..., "out": ..., "point": a name of POINTS
or null, "environment": {...}}; the answer a line {"killed": bool, "error": the message of a documented error, "traceback": ...,
"calls": what faults.c has counted}.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """The n-th call of a function of the exporter, before it or after it."""

    module: str
    function: str
    after: bool = False
    nth: int = 1


OUTPUT, RUN = "fairy2i_export.output", "fairy2i_export.compile.run"
POINTS = {
    "a workspace is to be made": Point(f"{OUTPUT}.workspace", "_open_workspace"),
    "the workspace is made": Point(f"{OUTPUT}.workspace", "_open_workspace", after=True),
    "the journal is begun": Point(f"{OUTPUT}.journal", "Journal.resume", after=True),
    "the workspace is cleared": Point(f"{OUTPUT}.workspace", "Workspace.clear", after=True),
    "files are to be copied": Point(RUN, "copy_files"),
    "files are copied": Point(RUN, "copy_files", after=True),
    "the data file is made": Point(f"{OUTPUT}.data_file", "DataFile.__init__", after=True),
    "a tensor is begun": Point(f"{OUTPUT}.data_file", "TensorWriter.write", after=True),
    "a tensor is written": Point(f"{OUTPUT}.data_file", "TensorWriter.record", after=True, nth=2),
    "a tensor is to be noted": Point(f"{OUTPUT}.journal", "Journal.finished_tensor", nth=3),
    "a tensor is noted": Point(f"{OUTPUT}.journal", "Journal.finished_tensor", after=True, nth=3),
    "a file of the source is to be noted": Point(f"{OUTPUT}.journal", "Journal.finished_file"),
    "a file of the source is noted": Point(f"{OUTPUT}.journal", "Journal.finished_file", after=True),
    "model.onnx is to be written": Point(RUN, "_write_model"),
    "model.onnx is written": Point(RUN, "_write_model", after=True),
    "genai_config.json is written": Point(RUN, "write_genai_config", after=True),
    "the result is to be loaded": Point(RUN, "check_loads"),
    "hashes are to be written": Point(RUN, "write_sums"),
    "hashes are written": Point(RUN, "write_sums", after=True),
    "the card is to be written": Point(RUN, "model_card", after=True),
    "the folder is to be placed": Point(f"{OUTPUT}.workspace", "Workspace.place"),
    "it is known which folder": Point(f"{OUTPUT}.workspace", "place_folder"),
    "files are on the disk": Point(f"{OUTPUT}.placing", "sync_folder", after=True),
    "the name is to be given": Point(f"{OUTPUT}.placing", "sync_names", nth=1),
    "the earlier one is to be removed": Point(f"{OUTPUT}.placing", "remove_export"),
    "the earlier one is removed": Point(f"{OUTPUT}.placing", "remove_export", after=True),
    "the folder is placed": Point(f"{OUTPUT}.workspace", "place_folder", after=True),
    "the workspace is to be removed": Point(f"{OUTPUT}.workspace", "_remove"),
}
ONLY_WITH_AN_EARLIER = {"the earlier one is to be removed", "the earlier one is removed"}


def arm(point: Point) -> None:
    """Have this process killed there."""
    *owners, name = point.function.split(".")
    owner: Any = importlib.import_module(point.module)
    for each in owners:
        owner = getattr(owner, each)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.nth and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if calls == point.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def perform(order: dict[str, Any]) -> dict[str, Any]:
    """In the copy: the export, and what came of it."""
    from fairy2i_export import export
    from fairy2i_export.errors import Fairy2iError
    from fairy2i_export.rewrite import rewrite_onnx

    os.environ.update(order.get("environment", {}))
    if order.get("point") is not None:
        arm(POINTS[order["point"]])
    found = {"error": "", "traceback": ""}
    try:
        make = rewrite_onnx if order["source"].endswith(".onnx") else export
        make(order["source"], order["out"], force=True)
    except Fairy2iError as error:
        found["error"] = str(error)
    except BaseException:
        found["traceback"] = traceback.format_exc()
    counter = getattr(ctypes.CDLL(None), "faults_count", None)
    return {**found, "killed": False, "calls": counter() if counter is not None else 0}


def main() -> None:
    """Answer orders until there are no more."""
    needed = {"onnxruntime", "tokenizers", "onnx", "fairy2i_runtime.model", "fairy2i_export.rewrite"}
    for name in needed | {point.module for point in POINTS.values()}:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            with os.fdopen(writer, "w") as file:
                json.dump(perform(order), file)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            answer = file.read()
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(
            answer or json.dumps({"killed": killed, "error": "", "traceback": f"status {status}" * (not killed)}), flush=True
        )


if __name__ == "__main__":
    main()
