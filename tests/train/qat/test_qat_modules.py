"""Preparing and converting models, what they save and load, and when a dequantized weight is made anew."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from fairy2i_export import quantize
from fairy2i_export.errors import OptionError, WeightError
from rewrite_helpers import operator_matrices, rewrite

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fairy2i_export.train import (  # noqa: E402
    QATLinear,
    QuantizationOptions,
    config_entry,
    convert,
    prepare,
)
from fairy2i_export.train.compat import convert_to_inference_mode, replace_modules_for_qat  # noqa: E402
from fairy2i_export.train.qat import native_quantizer  # noqa: E402
from fairy2i_export.train.qat.cache import WeightCache  # noqa: E402

IDS = torch.arange(24).reshape(2, 12)


def llama(tied: bool = False, dtype: Any = torch.float32, **sizes: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 60, "num_hidden_layers": 2, **sizes}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied
    )
    return transformers.LlamaForCausalLM(config).to(dtype)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["fairy2i", "binary", "ternary"])
def test_prepare_and_convert(method: str, dtype: Any) -> None:
    model = llama(dtype=dtype)
    before = logits(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = prepare(model, method)
    assert len(report.replaced) == 15
    assert (report.left, report.untied) == ({}, ())
    assert "15 linear layers quantize" in str(report)
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    quantized = logits(model)
    assert not torch.equal(quantized, before)
    assert model.config.fairy2i["latent"] is True
    converted = convert(copy.deepcopy(model))
    assert not any(isinstance(module, QATLinear) for module in converted.modules())
    assert torch.equal(logits(converted), quantized)
    assert converted.config.fairy2i["latent"] is False
    with pytest.raises(OptionError, match="dequantized already"):
        prepare(converted)
    assert convert(converted) is converted  # nothing left to do


def test_one_training_step_equals_a_dense_model_with_the_quantized_weights() -> None:
    model = llama()
    prepare(model, QuantizationOptions(stages=3))
    dense = convert(copy.deepcopy(model))
    for each in (model, dense):
        each(IDS, labels=IDS).loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_a_reference_checkpoint_loads_and_ours_loads_there(tmp_path: Path) -> None:
    """Plain LLaMA keys, bfloat16 latent weights: saved by transformers alone, and read back by it alone."""
    reference = llama(dtype=torch.bfloat16)
    reference.save_pretrained(tmp_path / "reference")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "reference", dtype=torch.bfloat16)
    prepare(model, "fairy2i")
    q_proj = model.model.layers[0].self_attn.q_proj
    latent = reference.model.layers[0].self_attn.q_proj.weight
    expected = quantize(latent.detach().float().numpy()).dequantize()
    assert torch.equal(q_proj.quantized_weight().float(), torch.from_numpy(expected))
    model.save_pretrained(tmp_path / "ours")
    entry = json.loads((tmp_path / "ours" / "config.json").read_text())["fairy2i"]
    assert entry == {
        "method": "fairy2i", "stages": 2, "profile": "bf16-reference", "quantizer": "greedy", "row_multiplier": "none",
        "scales": "computed", "lm_head": "fairy2i", "latent": True,
    }  # fmt: skip
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert list(plain.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), reference.parameters(), strict=True))
    prepare(plain)  # as config.json says
    assert torch.equal(logits(plain), logits(model))
    fresh = llama(dtype=torch.bfloat16)
    prepare(fresh, "fairy2i")
    fresh.load_state_dict(reference.state_dict(), strict=True)


def test_a_tied_lm_head_is_untied_unless_skipped(tmp_path: Path) -> None:
    model = llama(tied=True)
    assert prepare(model, "fairy2i").untied == ("lm_head",)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings is False
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path / "untied")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)

    model = llama(tied=True)
    report = prepare(model, "fairy2i", skip_lm_head=True)
    assert (report.left, report.untied) == ({"lm_head": "skip_lm_head"}, ())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.fairy2i["lm_head"] == "float"
    model.save_pretrained(tmp_path / "tied")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_which_layers_are_left_and_why() -> None:
    model = llama(vocab_size=61)
    report = prepare(model, "fairy2i", include=["model.layers.*", "lm_head"], exclude=["*.1.*.down_proj"])
    assert report.left == {"model.layers.1.mlp.down_proj": "exclude", "lm_head": "odd dimension (61 x 32)"}
    assert type(model.lm_head) is torch.nn.Linear
    assert model.config.fairy2i["exclude"] == ["model.layers.1.mlp.down_proj"]
    with pytest.raises(OptionError, match=r"no linear layer would be quantized \(.*quantizes already"):
        prepare(model, "fairy2i", exclude=["*.1.*.down_proj"])
    assert prepare(llama(vocab_size=61), "binary").left == {}  # the baselines have no pairs
    with pytest.raises(OptionError, match=r"\*\.key: no linear layer has a name like that"):
        prepare(llama(), "fairy2i", exclude=["*.key"])
    with pytest.raises(ValueError, match="expected even dimensions"):
        QATLinear(8, 7)
    attention = torch.nn.TransformerEncoderLayer(16, 2, 32)
    assert prepare(attention, "fairy2i").left == {"self_attn.out_proj": "its parent uses the weight without calling it"}
    shared = torch.nn.Linear(4, 4)
    twice = torch.nn.ModuleDict({"a": shared, "b": shared})
    prepare(twice, "fairy2i")
    assert twice["a"] is twice["b"]


def test_the_published_names(capsys: pytest.CaptureFixture[str]) -> None:
    for stages in (1, 2, 3, 4):
        for dtype, profile in ((torch.bfloat16, "bf16-reference"), (torch.float32, "fp32")):
            model = llama(dtype=dtype)
            assert replace_modules_for_qat(model, f"complex_phase_v{stages}", skip_lm_head=True) is None
            assert type(model.lm_head) is torch.nn.Linear
            entry = config_entry(model)
            assert (entry["stages"], entry["profile"]) == (stages, profile)
    trained = logits(model)
    assert convert_to_inference_mode(model) is model
    assert torch.equal(logits(model), trained)
    model = llama()
    replace_modules_for_qat(model, "bitnet")
    assert config_entry(model)["method"] == "binary"
    with pytest.raises(OptionError, match="complex_phase_v1"):
        replace_modules_for_qat(llama(), "complex_phase_v5")


def count_quantizing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = native_quantizer.dequantize_into

    def counted(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(native_quantizer, "dequantize_into", counted)
    return calls


CHANGES: dict[str, Any] = {
    "an optimizer": lambda layer: torch.optim.SGD(layer.parameters(), lr=1.0).step(),
    "in place": lambda layer: layer.weight.detach().mul_(0.5),
    ".data in place": lambda layer: layer.weight.data.mul_(0.5),  # changes no version counter
    ".data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 0.5),
    "one sign": lambda layer: layer.weight.data[3, 5:6].neg_(),
    "all signs": lambda layer: layer.weight.data.neg_(),
    "a new parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight.detach() * 0.5)),
    "load_state_dict": lambda layer: layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()}),
    "another type": lambda layer: layer.to(torch.bfloat16),
    "through numpy": lambda layer: np.multiply(layer.weight.detach().numpy(), 0.5, out=layer.weight.detach().numpy()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_weight_is_quantized_again_when_it_has_changed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = QATLinear(18, 10, bias=False)
    x = torch.randn(3, 18)
    calls = count_quantizing(monkeypatch)
    for micro_batch in range(3):
        layer(x).sum().backward()
        assert len(calls) == 1, micro_batch
    CHANGES[change](layer)
    y = layer(x.to(layer.weight.dtype))
    assert len(calls) == 2
    assert torch.equal(y, layer.to_linear()(x.to(layer.weight.dtype)))


def test_at_most_one_buffer_and_no_stale_gradients() -> None:
    layer = QATLinear(18, 10)
    x = torch.randn(3, 18, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    first = layer.quantized_weight()
    old = layer(x)
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert layer.quantized_weight().data_ptr() == first.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as torch says of dense layers
        old.sum().backward()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._cache._buffer is None
        assert torch.equal(other(x), layer(x))
    assert isinstance(layer._cache, WeightCache)
    off = QATLinear.from_linear(layer, QuantizationOptions(cache=False))
    assert torch.equal(off(x), layer(x))
    assert off._cache._buffer is None


def test_checkpointed_activations() -> None:
    """Layers run again in the backward pass: the same gradients, and nothing is quantized again."""
    model = llama()
    prepare(model, "fairy2i")
    model(IDS, labels=IDS).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_autocast() -> None:
    """The weight is bfloat16 at once, as autocast would make it; gradients come back in float32."""
    layer = QATLinear(18, 10, bias=False)
    x = torch.randn(3, 18)
    dense = layer.to_linear()
    outputs = []
    for module in (layer, dense):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(module(x))
        outputs[-1].float().square().sum().backward()
    assert outputs[0].dtype == torch.bfloat16
    assert torch.equal(*outputs)
    assert torch.equal(layer.weight.grad, dense.weight.grad)
    assert layer._cache._buffer.dtype == torch.bfloat16


def test_learned_parameters_save_and_load(tmp_path: Path) -> None:
    options = QuantizationOptions(learned_scales=True, row_multiplier="learned")
    model, other = llama(), llama()
    prepare(model, options)
    entry = model.config.fairy2i
    assert (entry["scales"], entry["row_multiplier"]) == ("learned", "learned")
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.mul_(1.25)
    prepare(other, options)
    plain = {key: value for key, value in model.state_dict().items() if not key.endswith(("scales", "row_multiplier"))}
    other.load_state_dict(plain)  # the reference's layout: they start from the weights
    q = quantize(plain["lm_head.weight"].numpy(), 2, row_multiplier="rms")
    np.testing.assert_array_equal(other.lm_head.scales.detach().numpy(), q.scales)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    prepare(loaded)
    from fairy2i_export.train import load_learned

    assert load_learned(loaded, tmp_path) == 30
    assert torch.equal(logits(loaded), logits(model))


def test_a_shard_is_refused() -> None:
    class DTensor(torch.nn.Parameter):
        pass

    layer = QATLinear(8, 6)
    layer.weight = DTensor(layer.weight.detach())
    with pytest.raises(WeightError, match="shard"):
        layer(torch.ones(1, 8))


def test_onnx_export_is_recognised_by_the_rewriting_front_end(tmp_path: Path) -> None:
    """Three layers with different options in one module: exporting takes seconds."""
    from rewrite_helpers import torch_export

    settings = [
        QuantizationOptions(),
        QuantizationOptions(stages=3, profile="fp32"),
        QuantizationOptions(row_multiplier="rms", profile="fp32"),
    ]
    sizes = [64, 96, 64, 96]
    layers = [
        QATLinear.from_linear(torch.nn.Linear(into, out), options)
        for into, out, options in zip(sizes, sizes[1:], settings, strict=False)
    ]
    module = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    source = torch_export(module, (torch.randn(2, 5, 64),), tmp_path / "qat.onnx", optimize=False)
    report = rewrite(source)
    # "recovered" keeps the codes it finds, "trained" makes them from the latent weight: the same
    assert [(layer.name, layer.stages) for layer in report.rewritten] == [("0", 2), ("2", 3), ("4", 2)]
    assert {layer.origin for layer in report.rewritten} <= {"recovered", "trained"}
    matrices = list(operator_matrices(tmp_path / "out").values())
    for layer, options, matrix in zip(layers, settings, matrices, strict=True):
        latent = layer.weight.detach().numpy()
        q = quantize(latent, options.stages, options.profile, row_multiplier=options.row_multiplier)  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix, q.dequantize("none"), atol=1e-6)


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile sees one opaque operator; the same bits, and gradients."""
    layer = QATLinear(18, 10, options=QuantizationOptions(stages=3))
    x = torch.randn(3, 18)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    assert torch.equal(y, layer(x))
    y.sum().backward()
    found = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(x).sum().backward()
    assert torch.equal(found, layer.weight.grad)


def test_nothing_else_imports_torch_or_the_training_package() -> None:
    """At module level; functions of commands may."""
    allowed = ("train/", "compile/calibrate/", "check/lm_eval/")  # the last one is a plug-in that lm_eval imports
    modules = ("torch", "transformers")
    starts = tuple(f"{word} {module}{end}" for word in ("import", "from") for module in modules for end in (" ", ".", "\n"))
    found = []
    for path in sorted((ROOT / "fairy2i_export").rglob("*.py")):
        if path.relative_to(ROOT / "fairy2i_export").as_posix().startswith(allowed):
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found += [f"{path.name}: {line}" for line in lines if line.startswith(starts)]
    assert found == []
    imported = ", ".join(f"fairy2i_export.{name}" for name in ("commands.export", "commands.tools", "train.recipe"))
    code = f"import sys, fairy2i_export, {imported}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shapes_without_numbers() -> None:
    """A model on the meta device, as tools make it that ask for shapes alone."""
    layer = QATLinear(8, 6, device="meta")
    assert layer(torch.ones(3, 8, device="meta")).shape == (3, 6)
