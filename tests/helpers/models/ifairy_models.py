"""The two tiny iFairy models of tests/helpers/data/ifairy as checkpoints, and how they are run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

import fairy2i_runtime
from conftest import ROOT
from export_helpers import write_tokenizer

DATA = ROOT / "tests" / "helpers" / "data" / "ifairy"
MODELS = ("A_mha", "B_gqa")
TOLERANCE = 5e-5  # of logits and cache, absolute: float32 sums in another order, no rounding of an activation flipped
POSITIONS = "positions/ids/output"  # int64 [batch, sequence]
ROUNDED = "/int8"  # ends the names of values that are rounded
F32 = npt.NDArray[np.float32]


def golden(model: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays that the released code gave, by name; see tests/helpers/data/ifairy/README.md."""
    with np.load(DATA / model / "golden.npz") as found:
        return dict(found)


def checkpoint(folder: Path, model: str, **config: Any) -> Path:
    """The model as its authors would publish it: config.json, one safetensors file, a tokenizer without beginning of text."""
    folder.mkdir(parents=True)
    stated = json.loads((DATA / model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    shutil.copy(DATA / model / "weights.safetensors", folder / "model.safetensors")
    write_tokenizer(folder, words=stated["vocab_size"])
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "add_bos_token": False}))
    return folder


def leave_rounding_out(model: onnx.ModelProto) -> None:
    """Make linear layers read what is not rounded: those that do it themselves, or those whose input is rounded in the graph."""
    made = {output: node for node in model.graph.node for output in node.output}
    count = 0
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "activation_bits":
                assert attribute.i == 8
                attribute.i = 0
                count += 1
        for index, name in enumerate(node.input):
            if name.removesuffix("/output").endswith(ROUNDED):
                halves = made[f"{name.removesuffix('/output')}/halves/output"]
                node.input[index] = halves.input[0]
                count += 1
    assert count


def free_positions(model: onnx.ModelProto) -> None:
    """Make positions an input, and rotate by them in nodes: GroupQueryAttention does it by slots of the cache."""
    ids = next(node for node in model.graph.node if node.output[0] == POSITIONS)
    model.graph.node.remove(ids)
    model.graph.input.append(onnx.helper.make_tensor_value_info(POSITIONS, onnx.TensorProto.INT64, None))
    nodes = []
    for node in model.graph.node:
        inside = next((entry for entry in node.attribute if entry.name == "do_rotary"), None)
        if inside is not None and inside.i:
            inside.i = 0
            for index in range(2):
                given, rotated = [node.input[index], POSITIONS, *node.input[7:9]], f"{node.name}/rotated_{index}"
                nodes.append(onnx.helper.make_node("RotaryEmbedding", given, [rotated], domain="com.microsoft"))
                node.input[index] = rotated
            node.input[7] = node.input[8] = ""
        nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


class Runner:
    """A session of a model.

    Args:
        model_file: of an exported folder.
        kernel: to run; None runs the function body in standard operators instead of the library.
        rounding: False leaves the rounding of activations out, for which the models have no switch.
        positions: makes positions an input, so that any can be tried.
    """

    def __init__(
        self, model_file: Path, kernel: str | None = "exact", *, rounding: bool = True, positions: bool = False
    ) -> None:
        model = onnx.load(model_file, load_external_data=False)
        if positions:
            free_positions(model)
        if not rounding:
            leave_rounding_out(model)
        edited = model_file.with_name(f"edited-{kernel}.onnx")
        onnx.save(model, edited)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        disabled = []
        if kernel is None:
            disabled = ["ConstantFolding"]  # or all weights are unpacked at once
        else:
            options.add_session_config_entry("fairy2i.kernel", kernel)
            fairy2i_runtime.register(options)
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(str(edited), options, providers=providers, disabled_optimizers=disabled)
        edited.unlink()

    def run(
        self, ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64] | None = None, prompt: int | None = None
    ) -> tuple[F32, dict[str, npt.NDArray[Any]]]:
        """Logits [1, length, vocabulary] and the cache at the end.

        Args:
            ids: [1, length].
            positions: [1, length], if they are an input.
            prompt: tokens that are run at once, the others one by one; all at once by default.
        """
        length = ids.shape[1]
        prompt = length if prompt is None else prompt
        types = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}
        past = {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), types.get(item.type, np.float32))
            for item in self.session.get_inputs()
            if item.name.startswith("past_")
        }
        found = []
        for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, length))]:
            feeds = {
                "input_ids": ids[:, start:end],
                "attention_mask": np.ones((1, end), np.int64),
            }
            if positions is not None:
                feeds[POSITIONS] = positions[:, start:end]
            logits, *present = self.session.run(None, {**feeds, **past})
            found.append(logits)
            past = dict(zip(past, present, strict=True))
        return np.concatenate(found, axis=1), past
