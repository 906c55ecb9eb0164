"""Tiny random LLaMA checkpoints, and exported models run by ONNX Runtime without the C library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from fairy2i_export import Observer, quantize

WORDS = 200  # of the tokenizer that write_tokenizer makes


def write_tokenizer(directory: Path, words: int = WORDS) -> None:
    """A tokenizer.json with ``words`` whole-word tokens: <unk>, <s>, </s>, w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))


def config_of(**changes: Any) -> dict[str, Any]:
    """A LLaMA config.json. The sizes are multiples of neither 32 nor 64, so that padding matters."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 210,
        "hidden_size": 72,
        "intermediate_size": 150,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def tensors_of(config: dict[str, Any], seed: int = 0) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Random weights of such a model, one tensor at a time, large enough for logits that differ clearly."""
    rng = np.random.default_rng(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]

    def linear(name: str, out: int, into: int, bias: bool) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        yield f"{name}.weight", rng.standard_normal((out, into), np.float32) * np.float32(1.5 / np.sqrt(into))
        if bias:
            yield f"{name}.bias", rng.standard_normal(out, np.float32) * np.float32(0.3)

    yield "model.embed_tokens.weight", rng.standard_normal((vocab, hidden), np.float32)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", rng.uniform(0.5, 1.5, hidden).astype(np.float32)
        for name, out, into in (("q", query, hidden), ("k", key, hidden), ("v", key, hidden), ("o", hidden, query)):
            yield from linear(f"{prefix}.self_attn.{name}_proj", out, into, config["attention_bias"])
        for name, out, into in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield from linear(f"{prefix}.mlp.{name}_proj", out, into, config["mlp_bias"])
    yield "model.norm.weight", rng.uniform(0.5, 1.5, hidden).astype(np.float32)
    if not config["tie_word_embeddings"]:
        yield from linear("lm_head", vocab, hidden, False)


def write_safetensors(path: Path, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file byte by byte: the tests need damaged ones and bfloat16 without torch."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8"}
    header, offset = {}, 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())


def make_checkpoint(
    directory: Path,
    *,
    dtype: npt.DTypeLike = ml_dtypes.bfloat16,
    replace: dict[str, npt.NDArray[Any]] | None = None,
    tensors: dict[str, npt.NDArray[np.float32]] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a random LlamaForCausalLM as one safetensors file, without torch.

    Args:
        directory: to make.
        dtype: of the weights.
        replace: tensors to store instead of (or besides) the random ones; as they are.
        tensors: instead of all random ones.
        seed: of the weights.
        config: changes of config.json; None removes a key.
    """
    directory.mkdir()
    values = config_of(**config)
    (directory / "config.json").write_text(json.dumps(values))
    stored: dict[str, npt.NDArray[Any]] = {
        name: array.astype(dtype) for name, array in (tensors or dict(tensors_of(values, seed))).items()
    }
    write_safetensors(directory / "model.safetensors", {**stored, **(replace or {})})
    write_tokenizer(directory)
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; None removes one."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def dequantized_torch_model(directory: Path, rewritten: list[str], **quantizer: Any) -> Any:
    """The transformers model in float32 with the weight of every rewritten layer replaced by its dequantized one."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for name in rewritten:
        module = model.get_submodule(name)
        q = quantize(module.weight.detach().numpy(), name=name, **quantizer)
        module.weight = torch.nn.Parameter(torch.from_numpy(q.dequantize("none")))  # a new one: unties a tied lm_head
    return model


def torch_logits(model: Any, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits [batch, sequence, vocabulary] of the whole sequence."""
    import torch

    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def plain_session(folder: Path) -> ort.InferenceSession:
    """A session without the C library: the function body is executed."""
    return ort.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def cache_shapes(session: ort.InferenceSession) -> dict[str, tuple[int, int]]:
    """Name of every past input -> (KV heads, head size)."""
    return {i.name: (i.shape[1], i.shape[3]) for i in session.get_inputs() if i.name.startswith("past_key_values.")}


class GrowingCache:
    """Runs a session whose present tensors become the past tensors of the next call."""

    def __init__(self, session: ort.InferenceSession, batch: int = 1) -> None:
        self.session = session
        self.past = {
            name: np.zeros((batch, heads, 0, size), np.float32) for name, (heads, size) in cache_shapes(session).items()
        }
        self.length = 0

    def __call__(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.length += ids.shape[1]
        mask = np.ones((ids.shape[0], self.length), np.int64)
        outputs = self.session.run(None, {"input_ids": ids, "attention_mask": mask, **self.past})
        self.past = dict(zip(self.past, outputs[1:], strict=True))
        logits: npt.NDArray[np.float32] = outputs[0]
        return logits


class SharedCache:
    """Runs a session whose past and present tensors are the same buffers of fixed capacity, as onnxruntime-genai does."""

    def __init__(self, session: ort.InferenceSession, capacity: int, batch: int = 1) -> None:
        self.session = session
        self.caches = {
            name: ort.OrtValue.ortvalue_from_numpy(np.full((batch, heads, capacity, size), np.nan, np.float32))
            for name, (heads, size) in cache_shapes(session).items()
        }
        self.length = 0

    def __call__(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        self.length += ids.shape[1]
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        mask = np.ones((ids.shape[0], self.length), np.int64) if mask is None else mask
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask))
        binding.bind_output("logits", "cpu")
        for name, value in self.caches.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.session.run_with_iobinding(binding)
        logits: npt.NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits


def relative_difference(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest difference relative to the largest expected magnitude."""
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


FILES = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "config.json")


class Recorder(Observer):
    """Keeps the notes; interrupts when told to."""

    def __init__(self, stop_after: int = -1, error: BaseException | None = None) -> None:
        self.notes: list[str] = []
        self.tensors = 0
        self.stop_after = stop_after
        self.error = error or KeyboardInterrupt()

    def advance(self, amount: int) -> None:
        if amount > 0:
            self.tensors += 1
            if self.tensors == self.stop_after:
                raise self.error

    def note(self, message: str) -> None:
        self.notes.append(message)


def assert_same(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


IDS = np.random.default_rng(3).integers(3, 200, (1, 25))


def compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calibration compute in float32 wherever tests run."""
    for module in ("streams", "tuning.student"):
        monkeypatch.setattr(f"fairy2i_export.compile.calibrate.{module}.has_fast_bfloat16", lambda: False)
