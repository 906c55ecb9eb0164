"""Model folders for the tests of the runtime: the embedded stories model, exported once per test session."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from fairy2i_export.compile.run import export

FAIRY2I = [sys.executable, "-m", "fairy2i_export.commands.tools"]  # the program, for a process of its own
GREEDY = ("--temperature", "0", "--repetition-penalty", "1")  # options that make what a command says repeatable
CHECKPOINT = Path(__file__).resolve().parents[3] / "examples/models/stories260K-fairy2i-w2"
CHAT_TEMPLATE = """\
{% for message in messages %}
{{ bos_token if loop.first }}[{{ message.role }}] {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
[assistant]
{%- endif %}"""


@functools.cache
def _exported() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    scratch = tempfile.TemporaryDirectory(prefix="fairy2i-tests-")  # removed when the interpreter ends
    folder = Path(scratch.name) / "stories"
    export(CHECKPOINT, folder)
    return scratch, folder


def stories_folder() -> Path:
    """The exported stories model. Not to be changed."""
    return _exported()[1]


def copy_of_stories(target: Path) -> Path:
    """A copy of the exported stories model, to be changed at will."""
    shutil.copytree(stories_folder(), target)
    return target


def earlier_form(folder: Path) -> Path:
    """Make a model folder one of the time before num_logits_to_keep: its graph gives logits of all tokens."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    slices = {node.output[0]: node.input[0] for node in graph.node if node.name in ("logits/residual", "logits/attended")}
    kept = [node for node in graph.node if not node.name.startswith("logits/")]
    assert len(graph.node) - len(kept) == 3
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = slices.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    for values in (graph.input, graph.initializer):
        values.remove(next(value for value in values if value.name == "num_logits_to_keep"))
    onnx.save(model, folder / "model.onnx")
    return folder


def chat_folder(target: Path) -> Path:
    """The stories model with a chat template. It was never trained to chat; the mechanics are the same."""
    copy_of_stories(target)
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return target


class FailingSession:
    """A session one of whose runs fails as onnxruntime does."""

    def __init__(self, session: ort.InferenceSession, successes: int, error: BaseException | None = None) -> None:
        """``successes`` runs go well, the next one does not, those after it do again."""
        self.session, self.successes = session, successes
        self.error = error or ort.capi.onnxruntime_pybind11_state.RuntimeException("bad allocation")

    def run_with_iobinding(self, binding: ort.IOBinding, run_options: ort.RunOptions | None = None) -> None:
        self.successes -= 1
        if self.successes == -1:
            raise self.error
        self.session.run_with_iobinding(binding, run_options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def endless_session() -> ort.InferenceSession:
    """A graph that runs for hours: what a long prompt is to a small machine."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    body = make.make_graph(
        [make.make_node("Identity", ["go"], ["go_on"]), make.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [make.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9), ("x", 1))],
        [make.make_tensor_value_info(name, kind, []) for name, kind in (("go_on", 9), ("y", 1))],
    )
    graph = make.make_graph(
        [make.make_node("Loop", ["count", "", "start"], ["end"], body=body)],
        "endless",
        [make.make_tensor_value_info("count", 7, []), make.make_tensor_value_info("start", 1, [])],
        [make.make_tensor_value_info("end", 1, [])],
    )
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


class SlowSession:
    """The session of a model whose run number ``slow`` takes hours, in native code, unless it is interrupted."""

    def __init__(self, session: ort.InferenceSession, slow: int) -> None:
        self.session, self.slow, self.endless = session, slow, endless_session()
        self.entered = threading.Event()

    def run_with_iobinding(self, binding: ort.IOBinding, run_options: ort.RunOptions | None = None) -> None:
        self.slow -= 1
        if self.slow == -1:
            self.entered.set()
            feeds = {"count": np.array(1 << 60), "start": np.array(0, np.float32)}
            self.endless.run(None, feeds, run_options)
        self.session.run_with_iobinding(binding, run_options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def edit_config(folder: Path, *keys: str, value: object) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))
