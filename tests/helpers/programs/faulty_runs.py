"""A program that makes a run for every line on standard input, in a copy of itself that is killed at a named point.

A run is an export of a checkpoint, or of an .onnx file that is rewritten, or a training. A line is {"kind": a key of POINTS
(named_points.py), "source": ..., "out": ..., "options": of export() or of a recipe, "environment": {...}, "point": one of that
kind, or null, "meanwhile": true to begin the same run there in another copy, which ends before this one goes on, instead of
being killed}. The answer is a line {"killed": bool, "error": the message of a documented error, "traceback": ..., "calls": what
faults.c has counted, "continued": the step that a training went on from, or the tensors of an earlier export that were taken,
"meanwhile": the answer of the other run}.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from named_points import POINTS, Point

NEEDED = {
    "export": {"onnxruntime", "tokenizers", "onnx", "fairy2i_runtime.model", "fairy2i_export.rewrite"},
    "calibrate": {"onnxruntime", "fairy2i_runtime.model", "transformers.models.llama.modeling_llama"},
    "train": {"fairy2i_export.train.run", "transformers.models.llama.modeling_llama", "matplotlib.pyplot", "tensorboard"},
}
Ask = Callable[..., dict[str, Any]]


@contextmanager
def asking(*kinds: str, **environment: str) -> Iterator[Ask]:
    """The program, for runs of some kinds, as a function: ``ask(kind, source, out, point, options, meanwhile, **environment)``."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, str(Path(__file__)), *kinds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(
            kind: str,
            source: Path,
            out: Path,
            point: str | None = None,
            options: dict[str, Any] | None = None,
            meanwhile: bool = False,
            **variables: object,
        ) -> dict[str, Any]:
            order = {"kind": kind, "source": str(source), "out": str(out), "point": point, "meanwhile": meanwhile}
            order |= {"options": options or {}, "environment": {name: str(value) for name, value in variables.items()}}
            process.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            found: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            assert not found["traceback"], found["traceback"]
            return found

        yield ask
        process.stdin.close()


def arm(point: Point, act: Callable[[], None]) -> None:
    """Have this process do something there."""
    *owners, name = point.function.split(".")
    owner: Any = importlib.import_module(point.module)
    for each in owners:
        owner = getattr(owner, each)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        here = calls == point.nth  # not after the call: a second one may have come meanwhile
        if here and not point.after:
            act()
        result = real(*args, **options)
        if here and point.after:
            act()
        return result

    setattr(owner, name, call)


def perform(order: dict[str, Any]) -> dict[str, Any]:
    """In the copy: the run, and what came of it."""
    from fairy2i_export.errors import Fairy2iError
    from fairy2i_export.output.contract import worker

    os.environ.update(order["environment"])
    worker.is_apart = lambda: False  # a process for trials in every copy would take most of the time
    found: dict[str, Any] = {"killed": False, "error": "", "traceback": "", "continued": 0, "meanwhile": None}

    def act() -> None:
        if not order["meanwhile"]:
            os.kill(os.getpid(), signal.SIGKILL)
        found["meanwhile"] = in_a_copy({**order, "point": None})

    if order["point"] is not None:
        arm(POINTS[order["kind"]][order["point"]], act)
    try:
        found["continued"] = run(order["kind"], order["source"], order["out"], order["options"])
    except Fairy2iError as error:
        found["error"] = str(error)
    except BaseException:
        found["traceback"] = traceback.format_exc()
    counter = getattr(ctypes.CDLL(None), "faults_count", None)
    return {**found, "calls": counter() if counter is not None else 0}


def run(kind: str, source: str, out: str, options: dict[str, Any]) -> int:
    """The run that an order asks for; returns what it found of an earlier one."""
    if kind == "train":
        from fairy2i_export.train import train
        from fairy2i_export.train.recipe import Recipe

        texts = {name: tuple(options[name]) for name in ("data", "eval_data")}
        return train(Recipe(**{**options, **texts, "source": source, "output": Path(out)})).resumed_from
    if source.endswith(".onnx"):
        from fairy2i_export.rewrite import rewrite_onnx

        rewrite_onnx(source, out, force=True, **options)
        return 0
    from fairy2i_export import export

    return export(source, out, force=True, **options).reused


def in_a_copy(order: dict[str, Any]) -> dict[str, Any]:
    """:func:`perform` in a copy of this process, or how that ended."""
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
    if answer:
        found: dict[str, Any] = json.loads(answer)
        return found
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"killed": killed, "error": "", "traceback": f"status {status}" * (not killed), "meanwhile": None}


def main(kinds: list[str]) -> None:
    """Answer orders until there are no more."""
    points = {point.module for kind in kinds for point in POINTS[kind].values()}
    for name in points.union({"fairy2i_export.codes.native"}, *(NEEDED[kind] for kind in kinds)):
        importlib.import_module(name)
    sys.modules["fairy2i_export.codes.native"].library()  # its declarations are parsed once, not in every copy
    gc.freeze()  # what is there by now is garbage in no copy: each would walk through all of torch
    for line in sys.stdin:
        print(json.dumps(in_a_copy(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
