"""Models that other tools made: torch.onnx from transformers, onnxruntime-genai's builder, skl2onnx, QAT modules."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import pack, quantize
from fairy2i_export.rewrite import rewrite_onnx
from rewrite_helpers import assert_equal_outputs, operator_matrices, rewrite, run, torch_export

torch = pytest.importorskip("torch")


def names(report: Any) -> list[str]:
    return [linear.name for linear in report.rewritten]


def test_a_decoder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 120, "max_position_embeddings": 32}
            heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
            self.model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, use_cache=False).logits

    ids = np.random.default_rng(0).integers(0, 120, (2, 9))
    source = torch_export(Logits(), (torch.from_numpy(ids),), tmp_path / "llama.onnx")
    report = rewrite(source, exclude=["*.layers.0.mlp.up*"])
    assert Counter(name.rsplit(".", 1)[-1] for name in names(report)) == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"), 1)
    }
    assert Counter(linear.reason for linear in report.left) == {"the matrix is computed at run time": 2, "--exclude": 1}
    feed = onnx.load(source, load_external_data=False).graph.input[0].name
    assert_equal_outputs(source, tmp_path / "out", {feed: ids})


def test_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 32}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    ids = np.random.default_rng(0).integers(0, 100, (2, 9))
    source = torch_export(BertModel(config), (torch.from_numpy(ids),), tmp_path / "bert.onnx")
    report = rewrite(source)
    assert len(report.rewritten) == 7
    assert report.passes["fuse bias"] == 7  # the pooler is a Gemm, the others MatMul and Add
    assert {linear.operator for linear in report.rewritten} == {"MatMul", "Gemm"}
    assert "encoder.layer.0.attention.self.query" in names(report)
    assert_equal_outputs(source, tmp_path / "out", {"input_ids": ids})


def test_a_vision_transformer(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    source = torch_export(ViTModel(config), (torch.from_numpy(pixels),), tmp_path / "vit.onnx")
    report = rewrite(source, stages=3)
    assert len(report.rewritten) == report.passes["fuse bias"] == 7
    assert "Conv" in {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert_equal_outputs(source, tmp_path / "out", {"pixel_values": pixels})


def test_a_plain_network_with_a_dynamic_batch(tmp_path: Path) -> None:
    layers = [torch.nn.Linear(64, 48), torch.nn.GELU(), torch.nn.Linear(48, 48, bias=False), torch.nn.Linear(48, 3)]
    source = torch_export(
        torch.nn.Sequential(*layers),
        (torch.randn(2, 64),),
        tmp_path / "mlp.onnx",
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    report = rewrite(source)
    assert (names(report), [linear.name for linear in report.left]) == (["0", "2"], ["3"])
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    feed = onnx.load(source, load_external_data=False).graph.input[0].name
    assert_equal_outputs(source, tmp_path / "out", {feed: x})


def test_a_scikit_learn_network(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 20)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPClassifier((32, 16), max_iter=5, random_state=0).fit(x, np.arange(80) % 4)
    source = tmp_path / "sklearn.onnx"
    model = to_onnx(network, x[:1], options={"zipmap": False}, target_opset=18)
    source.write_bytes(model.SerializeToString())
    report = rewrite(source)
    assert len(report.rewritten) == report.passes["fuse bias"] == 3
    assert_equal_outputs(source, tmp_path / "out", {model.graph.input[0].name: x})


def test_the_builder_of_onnxruntime_genai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in, a folder out that onnxruntime-genai runs; the builder's float16 models for CPUs do not run at all."""
    og = pytest.importorskip("onnxruntime_genai")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    entry = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(entry))
    built = tmp_path / "built"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(built)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subprocess.run(
        [*command, "-p", "fp32", "-e", "cpu", "-c", str(tmp_path / "cache")], check=True, capture_output=True, timeout=300
    )
    report = rewrite_onnx(built / "model.onnx", tmp_path / "out")
    assert len(report.rewritten) == 11  # it joins q, k and v
    assert not report.left
    ids = np.array([[1, 5, 7, 9]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    past = [i.name for i in onnx.load(built / "model.onnx").graph.input if i.name.startswith("past")]
    feeds |= {name: np.zeros((1, 2, 0, 16), np.float32) for name in past}
    assert_equal_outputs(built / "model.onnx", tmp_path / "out", feeds)
    assert report.copied == ("genai_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 2}
    model = og.Model(og.Config(str(tmp_path / "out")))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=12, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens([1, 5, 7])
    while not generator.is_done():
        generator.generate_next_token()
    assert 3 < len(generator.get_sequence(0)) <= 12


QAT: list[Any] = [
    ("folded by torch", {}, {}, "recovered", 2),
    ("row multiplier, folded by torch", {}, {"rms": True}, "recovered", 2),
    ("as a subgraph", {"optimize": False}, {"stages": 3, "bfloat": False}, "recovered", 3),
    ("too small to recover", {"optimize": False}, {"rms": True, "stages": 4}, "trained", 4),
]


@pytest.mark.parametrize(("export", "setting", "origin", "stages"), [pytest.param(*rest, id=name) for name, *rest in QAT])
def test_quantization_aware_modules(tmp_path: Path, export: Any, setting: Any, origin: str, stages: int) -> None:
    """The rewritten model equals torch's own forward pass: nothing is quantized a second time."""
    from qat_module import StraightThroughLinear

    torch.manual_seed(0)
    linear = StraightThroughLinear(64, 96, **setting)
    module = torch.nn.Sequential(linear, torch.nn.ReLU())
    x = torch.randn(2, 5, 64)
    source = torch_export(module, (x,), tmp_path / "qat.onnx", **export)
    with torch.no_grad():
        expected = module(x).numpy()
    report = rewrite(source)
    assert [(layer.name, layer.origin, layer.stages) for layer in report.rewritten] == [("0", origin, stages)]
    assert report.warnings == ()
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    assert operators == {"Fairy2iMatMul": 1, "Relu": 1}  # nothing of the quantizer is left
    stages, bfloat, rms = linear.quantizer
    profile = "bf16-reference" if bfloat else "fp32"
    q = quantize(linear.weight.detach().numpy(), stages, profile, row_multiplier="rms" if rms else "none")
    (matrix,) = operator_matrices(tmp_path / "out").values()
    np.testing.assert_allclose(matrix, q.dequantize("none"), atol=1e-6)
    feed = onnx.load(source, load_external_data=False).graph.input[0].name
    for library in (True, False):
        got = run(tmp_path / "out" / "model.onnx", {feed: x.numpy()}, library=library)[0]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_modules_that_export_the_operator_itself(tmp_path: Path) -> None:
    """torch.onnx.ops.symbolic leaves a node with three inputs and no definition: both are completed."""

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = quantize(np.random.default_rng(0).standard_normal((32, 64)))
            packed = pack(self.q)
            self.packed = torch.nn.Parameter(torch.from_numpy(packed.packed), requires_grad=False)
            self.scales = torch.nn.Parameter(torch.from_numpy(packed.scales))
            self.head = torch.nn.Linear(32, 12)

        def forward(self, x: Any) -> Any:
            attributes = {"K": 64, "N": 32, "stages": 2, "layout_version": 1, "scale_scope": 0}
            operands = (x, self.packed, self.scales)
            shape = (*x.shape[:-1], 32)
            y = torch.onnx.ops.symbolic(
                "ai.fairy2i::Fairy2iMatMul", operands, attributes, dtype=x.dtype, shape=shape, version=1
            )
            return self.head(y)

    module = Exported()
    x = torch.randn(2, 64)
    source = torch_export(module, (x,), tmp_path / "symbolic.onnx")
    report = rewrite(source)
    assert (report.already, names(report)) == (1, ["head"])
    assert report.passes["define"] == 2  # the definition, and one node's inputs
    first = x.numpy() @ module.q.dequantize("none").T
    head = operator_matrices(tmp_path / "out")[report.rewritten[0].node]
    expected = first @ head.T + module.head.bias.detach().numpy()
    for library in (True, False):
        got = run(tmp_path / "out" / "model.onnx", {"x": x.numpy()}, library=library)[0]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    again = rewrite(tmp_path / "out" / "model.onnx", "again")
    assert (again.already, len(again.rewritten), again.passes["define"]) == (2, 0, 0)


def test_both_front_ends_give_the_same_model(tmp_path: Path) -> None:
    """What an export left dense, rewritten afterwards, is what the export would have made of it; the runtime reads both."""
    import fairy2i_runtime
    from fairy2i_export import export
    from runtime_models import CHECKPOINT

    export(CHECKPOINT, tmp_path / "whole")
    export(CHECKPOINT, tmp_path / "part", exclude=["*mlp*"])
    report = rewrite_onnx(tmp_path / "part" / "model.onnx", tmp_path / "out", row_multiplier="rms")
    assert (len(report.rewritten), report.already) == (15, 21)
    assert not report.left
    whole, out = operator_matrices(tmp_path / "whole"), operator_matrices(tmp_path / "out")
    assert whole.keys() == out.keys()
    for name, matrix in whole.items():
        np.testing.assert_array_equal(out[name], matrix)
    tokens = [1, 403, 407]
    logits = [fairy2i_runtime.load(tmp_path / name, threads=1).logits(tokens) for name in ("whole", "out")]
    np.testing.assert_array_equal(*logits)
