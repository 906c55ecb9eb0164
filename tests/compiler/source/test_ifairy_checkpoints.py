"""Reading iFairy checkpoints: pairs of tensors, what is refused with which words, and the commands on a folder made of one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from export_helpers import Recorder, edit_json, make_checkpoint, write_safetensors
from fairy2i_export import export
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import Fairy2iError
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime import load
from fairy2i_runtime.measure.perplexity import reference_windows
from ifairy_models import DATA, checkpoint

Q = "layer.0.self_attn.q_proj.weight"
RELEASED = {
    "architectures": ["ComplexNetLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "relu2", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 4096, "loss_type": "ForCausalLM",
    "max_position_embeddings": 2048, "model_type": "complexnet", "num_attention_heads": 16, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", "B_gqa")


def tensors_of(folder: Path) -> dict[str, Any]:
    """The stored tensors, to be changed and written again."""
    opened = open_checkpoint(folder)
    return {name: opened.owners[name].read(name) for name in opened.owners}


def refused(folder: Path, **options: Any) -> str:
    """The message of an export that fails and leaves nothing behind."""
    out = folder.parent / "out"
    with pytest.raises(Fairy2iError) as caught:
        export(folder, out, **options)
    assert not out.exists()
    return str(caught.value)


def test_released_configuration_is_read() -> None:
    """That of Fairy-plus-minus-i-700M: a real decoder of twice the width."""
    decoder = describe(RELEASED)
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.head_dim, decoder.heads) == (3072, 8192, 192, 16)
    assert decoder.notes == ()
    assert decoder.attention_scale is None  # 1 / sqrt(192)
    larger = describe({**RELEASED, "hidden_size": 2048, "intermediate_size": 5460, "num_attention_heads": 32})
    assert (larger.head_dim, larger.kv_heads) == (128, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
        ({"num_attention_heads": 3, "hidden_size": 66}, "num_attention_heads 3 is no multiple of num_key_value_heads 2"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected a whole number"),
        ({"head_dim": 32}, "head_dim 32 is not hidden_size / num_attention_heads .16."),
        ({"hidden_size": "64"}, "hidden_size: expected a whole number"),
        ({"hidden_size": 128}, r"token_embeddings_real.weight with .*imag.* expected shape \[97, 256\] .* found .97, 128"),
        ({"intermediate_size": 80}, r"layer.0.mlp.ffn_layernorm.weight_real with .* expected shape \[160\].*found \[168\]"),
        ({"num_key_value_heads": 4}, r"layer.0.self_attn.k_proj.weight_real with .*expected shape \[128, 64\].*found \[64, 64\]"),
        ({"num_hidden_layers": 3}, r"tensor layer.2.pre_layernorm.weight_real is missing"),
        ({"vocab_size": 98}, r"token_embeddings_real.*expected shape \[98, 128\]"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected a number"),
        ({"rope_theta": -1}, "rope_theta: expected a number"),
        ({"fairy2i": {"stages": 2}}, "fairy2i: an iFairy model has a method of its own"),
        ({"architectures": ["ComplexNet"]}, "architecture ComplexNet is not supported"),
        ({"architectures": None}, '"architectures": ..ComplexNetLM'),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit(source: Path, changes: dict[str, Any], words: str) -> None:
    edit_json(source / "config.json", **changes)
    assert re.search(words, refused(source))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "silu"),
        ("attention_bias", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("tie_word_embeddings", True),
    ],
)
def test_keys_that_the_released_code_ignores(source: Path, key: str, value: Any, tmp_path: Path) -> None:
    plain = export(source, tmp_path / "plain")
    assert not plain.warnings
    edit_json(source / "config.json", **{key: value})
    report = export(source, tmp_path / "out")
    assert [f"config.json: {key} " in warning and "ignored" in warning for warning in report.warnings] == [True]
    assert (report.path / "model.onnx.data").read_bytes() == (plain.path / "model.onnx.data").read_bytes()


def spoiled(kind: str, tensors: dict[str, Any]) -> str:
    """Damage the tensors of a checkpoint; what the message about it has to say."""
    if kind == "missing":
        del tensors[f"{Q}_imag"]
        return rf"tensor {Q}_imag is missing, and {Q}_real, the other part"
    if kind == "both missing":
        del tensors[f"{Q}_imag"], tensors[f"{Q}_real"]
        return rf"tensor {Q}_real is missing"
    if kind == "embedding missing":
        del tensors["token_embeddings_imag.weight"]
        return "tensor token_embeddings_imag.weight is missing, and token_embeddings_real.weight"
    if kind == "head missing":
        del tensors["lm_head.weight"]
        return "lm_head.weight is missing"
    if kind == "shape":
        tensors[f"{Q}_imag"] = np.ascontiguousarray(tensors[f"{Q}_imag"][:32])
        return rf"expected the two parts .* to be alike, found {Q}_real BF16 \[64, 64\] and {Q}_imag BF16 \[32, 64\]"
    if kind == "type":
        tensors[f"{Q}_imag"] = tensors[f"{Q}_imag"].astype(np.float32)
        return rf"found {Q}_real BF16 .* and {Q}_imag F32"
    if kind == "vector":
        for part in ("real", "imag"):
            tensors[f"token_embeddings_{part}.weight"] = np.ones(97, ml_dtypes.bfloat16)
        return r"tensor token_embeddings_real.weight: expected a matrix, found shape \[97\]"
    if kind == "vector of a layer":
        for part in ("real", "imag"):
            tensors[f"{Q}_{part}"] = np.ones(64, ml_dtypes.bfloat16)
        return rf"tensor {Q}_real: expected a matrix, found shape \[64\]"
    if kind == "matrix of a norm":
        for part in ("real", "imag"):
            tensors[f"final_norm.weight_{part}"] = np.ones((64, 1), ml_dtypes.bfloat16)
        return r"tensor final_norm.weight_real: expected a vector, found shape \[64, 1\]"
    if kind in ("NaN", "infinity"):
        tensors[f"{Q}_imag"][3, 5] = np.nan if kind == "NaN" else np.inf
        return rf"{Q}_"
    if kind == "NaN in a norm":
        tensors["layer.1.mlp.ffn_layernorm.weight_imag"][4] = np.nan
        return r"layer.1.mlp.ffn_layernorm.weight_real with .*the value at \[88\] is not finite"
    if kind == "NaN in the embedding":
        tensors["token_embeddings_imag.weight"][7, 1] = np.nan
        return r"token_embeddings_real.weight with .*beside it: the value at \[7, 65\] is not finite"
    assert kind == "no imaginary class"
    tensors[f"{Q}_real"][:] = 1
    tensors[f"{Q}_imag"][:] = 0.25
    return rf"{Q}_.*imaginary"


@pytest.mark.parametrize(
    "kind",
    [
        "missing", "both missing", "embedding missing", "head missing", "shape", "type", "vector", "vector of a layer",
        "matrix of a norm", "NaN", "infinity", "NaN in a norm", "NaN in the embedding", "no imaginary class",
    ],
)  # fmt: skip
def test_damaged_checkpoints(source: Path, kind: str) -> None:
    tensors = tensors_of(source)
    words = spoiled(kind, tensors)
    write_safetensors(source / "model.safetensors", tensors)
    assert re.search(words, refused(source))


def test_tensors_that_no_released_model_has(source: Path, tmp_path: Path) -> None:
    tensors = tensors_of(source)
    write_safetensors(source / "model.safetensors", {**tensors, "layer.0.mlp.extra.weight_real": np.ones(2, np.float32)})
    assert list(export(source, tmp_path / "out").warnings) == [
        "1 tensors of the checkpoint are not used, the first is layer.0.mlp.extra.weight_real"
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 2}, "stages: an iFairy model is quantized as it was trained, with 1, got 2"),
        ({"quantizer": "greedy"}, "quantizer: .* with ifairy, got 'greedy'"),
        ({"quantizer": "joint"}, "quantizer: .* with ifairy, got 'joint'"),
        ({"row_multiplier": "rms"}, "row multiplier: .* with none, got 'rms'"),
        ({"lm_head": "fairy2i"}, "lm_head: .* use float, int8 or int4"),
        ({"include": ["*.q_proj"]}, "include: cannot be asked of an iFairy model"),
        ({"exclude": ["*.q_proj"]}, "exclude: cannot be asked of an iFairy model"),
        ({"calibrate": ["text.txt"]}, "calibrate: cannot be asked of an iFairy model"),
        ({"calibrate": ["text.txt"], "bits": 2.5}, "calibrate: cannot be asked of an iFairy model"),
        ({"codes_from": "model"}, "codes from: cannot be asked of an iFairy model"),
        ({"rope_scaling": "linear:2"}, "rope scaling: cannot be asked of an iFairy model"),
        ({"rope_frequencies": "f16"}, "rope frequencies: expected one of bf16_load, bf16_cast, f32, got 'f16'"),
        ({"attention_scale": "1"}, "attention scale: expected one of flash, eager, got '1'"),
    ],
)
def test_options_that_do_not_fit(source: Path, options: dict[str, Any], words: str) -> None:
    assert re.search(words, refused(source, **options))


@pytest.mark.parametrize("options", [{"rope_frequencies": "f32"}, {"attention_scale": "flash"}, {"quantizer": "ifairy"}])
def test_its_options_are_for_no_other_model(tmp_path: Path, options: dict[str, Any]) -> None:
    assert "iFairy" in refused(make_checkpoint(tmp_path / "model"), **options)


def test_pairs_may_lie_in_different_shards(source: Path, tmp_path: Path) -> None:
    whole = export(source, tmp_path / "whole")
    expected = (whole.path / "model.onnx.data").read_bytes()
    tensors, names = tensors_of(source), sorted(tensors_of(source))
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        write_safetensors(source / file, {name: tensors[name] for name in own})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()
    assert (export(source, tmp_path / "sharded").path / "model.onnx.data").read_bytes() == expected
    for stop in (1, 9, 25):
        out = tmp_path / f"resumed-{stop}"
        with pytest.raises(KeyboardInterrupt):
            export(source, out, observer=Recorder(stop))
        report = export(source, out)
        assert report.reused > 0
        assert (out / "model.onnx.data").read_bytes() == expected


def test_commands_on_a_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("w3 w4 w5 w6\nw7 w8\nw9 w10 w11\n")
    assert export_main([str(source), "-o", str(out), "--dry-run"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert export_main([str(source), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert main(["verify", str(out), "--against", str(source)]) == 0
    printed = capsys.readouterr()
    assert "codes and scales of all 14 layers equal" in printed.out
    assert "transformers has no class" in printed.out + printed.err
    assert main(["inspect", str(out)]) == 0
    assert "ComplexNetLM" in capsys.readouterr().out
    assert main(["report", str(out), "--against", str(source), "-o", str(tmp_path / "report.html")]) == 0
    assert "exact mode" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    assert main(["ppl", str(out), "--text", str(text), "--no-bos", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert {item["protocol"] for item in found} == {"sliding", "reference"}
    assert not any("begun" in item["statement"] for item in found)
    for option in ("--against", "--float"):
        assert main(["ppl", str(out), "--text", str(text), option, str(source)]) != 0
        assert "transformers has no class" in capsys.readouterr().err
    assert main(["train", str(source), "--data", str(text), "-o", str(tmp_path / "trained")]) != 0
    assert "iFairy model" in capsys.readouterr().err
    assert "iFairy" in (out / "README.md").read_text()


def test_verify_finds_another_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = export(source, tmp_path / "out")
    tensors = tensors_of(source)
    tensors[f"{Q}_real"] = -tensors[f"{Q}_real"]
    write_safetensors(source / "model.safetensors", tensors)
    assert main(["verify", str(report.path), "--against", str(source)]) != 0
    assert "model.layers.0.self_attn.q_proj" in capsys.readouterr().out


def test_texts_begin_without_a_token(source: Path, tmp_path: Path) -> None:
    """As the tokenizer is shipped: add_bos_token is false, and the authors' perplexity is measured without it, too."""
    model = load(export(source, tmp_path / "out").path)
    assert model.tokenizer.encode("w3 w4") == [3, 4]
    (window,) = reference_windows(model.tokenizer, "w3 w4\nw5", 16, bos=False).windows
    assert window.ids == [3, 4, 2, 5, 2]
    assert window.scored.tolist() == [True, True, False, True]
    assert reference_windows(model.tokenizer, "w3 w4", 16).windows[0].ids == [1, 3, 4, 2]


def test_data_is_as_published() -> None:
    """The golden numbers belong to these sizes; a change of the data would not go unseen."""
    config = json.loads((DATA / "B_gqa" / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"]) == (64, 84, 2)
