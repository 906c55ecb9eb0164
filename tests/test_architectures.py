"""Every architecture against transformers: prompt and 20 single tokens, one text, and a batch of three with left padding."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fairy2i_runtime
from architecture_helpers import (
    VOCABULARY,
    dequantized,
    exact_session,
    largest_difference,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import SharedCache, edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.architectures import ARCHITECTURES, describe
from fairy2i_export.errors import ArchitectureError, CheckpointError, OptionError
from fairy2i_export.tools_cli import main

TOLERANCE = 2e-5  # of the largest logit
PROMPT, STEPS = 12, 20
PADDING = (0, 5, 9)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

CASES = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, id="llama3 rope, tied"),
    pytest.param("llama", {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}, id="llama, yarn, biases"),
    pytest.param("mistral", {"sliding_window": 6}, id="mistral, window shorter than the prompt"),
    pytest.param("mistral", {"sliding_window": 17}, id="mistral, window reached while decoding"),
    pytest.param("mistral", {"sliding_window": None}, id="mistral without window"),
    pytest.param("qwen2", {}, id="qwen2"),
    pytest.param("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, id="qwen2, window"),
    pytest.param("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1000000.0}}, id="qwen2, yarn"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param("qwen3", {"attention_bias": True, "head_dim": 8, "tie_word_embeddings": True}, id="qwen3, biases, tied"),
    pytest.param("smollm3", {"num_hidden_layers": 4}, id="smollm3"),
    pytest.param(
        "smollm3",
        {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
        },
        id="smollm3, window without rope",
    ),
    pytest.param("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 24}, id="gemma2"),
    pytest.param("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **MIXED}, id="gemma2, hard caps"),
    pytest.param("gemma3_text", {**MIXED, "query_pre_attn_scalar": 24}, id="gemma3"),
    pytest.param("gemma3_text", {"sliding_window": 6, "num_hidden_layers": 7}, id="gemma3, five to one"),
    pytest.param(
        "gemma3_text",
        {
            **MIXED,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
            "final_logit_softcapping": 4.0,
            "tie_word_embeddings": False,
        },
        id="gemma3, linear rope, untied",
    ),
    pytest.param("phi3", {}, id="phi3"),
    pytest.param("phi3", {"sliding_window": 6, "tie_word_embeddings": True}, id="phi3, window, tied"),
    pytest.param(
        "phi3",
        # transformers checks the number of factors against hidden_size / heads
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 48,
            "hidden_size": 64,
            "max_position_embeddings": 96,
        },
        id="phi3, longrope within the original context",
    ),
    pytest.param(
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        id="phi3, half of every head rotated",
    ),
    pytest.param("olmo2", {}, id="olmo2"),
    pytest.param("olmo2", {"attention_bias": True, "num_key_value_heads": 4}, id="olmo2, biases"),
]


def random_ids(batch: int, length: int = PROMPT + STEPS) -> np.ndarray:
    return np.random.default_rng(3).integers(3, VOCABULARY, (batch, length))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_logits_equal_those_of_transformers(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "model", kind, **settings)
    context = {"context_length": 48} if "original_max_position_embeddings" in settings else {}
    report = export(source, tmp_path / "out", embedding="float32", **context)
    assert not report.kept
    assert not any("not used" in warning for warning in report.warnings)
    model, session = dequantized(source, report), exact_session(report.path)
    for padding in ((0,), PADDING):
        ids = random_ids(len(padding))
        mask = (np.arange(ids.shape[1]) >= np.array(padding)[:, None]).astype(np.int64)
        expected = reference_logits(model, ids, mask)
        assert largest_difference(stepwise_logits(session, ids, mask, PROMPT), expected, mask) < TOLERANCE


@pytest.mark.parametrize("kind", ["gemma2", "phi3"])
def test_a_cache_in_place_and_padding_on_either_side(tmp_path: Path, kind: str) -> None:
    """One buffer for past and present, full of NaN at first. Zeros behind a text, as genai pads, take no place in it."""
    source = save_tiny(tmp_path / "model", kind, sliding_window=6)
    report = export(source, tmp_path / "out", embedding="float32")
    model, session = dequantized(source, report), exact_session(report.path)
    texts = random_ids(3)
    lengths = np.array([PROMPT, 7, 3])
    columns = np.arange(PROMPT + STEPS)
    real = np.concatenate([columns[:PROMPT] < lengths[:, None], np.ones((3, STEPS), bool)], axis=1)
    for mask, of_row in (
        (real, lambda row: texts[row, real[row]][None]),  # right
        ((columns >= (PROMPT - lengths)[:, None]), lambda row: texts[row, PROMPT - lengths[row] :][None]),  # left
    ):
        cache = SharedCache(session, PROMPT + STEPS, 3)
        pieces = [cache(texts[:, :PROMPT], mask[:, :PROMPT].astype(np.int64))]
        for step in range(PROMPT, PROMPT + STEPS):
            pieces.append(cache(texts[:, step : step + 1], mask[:, : step + 1].astype(np.int64)))
        logits = np.concatenate(pieces, axis=1)
        for row in range(3):
            text = of_row(row)
            expected = reference_logits(model, text, np.ones_like(text))
            assert np.abs(logits[row, mask[row]] - expected[0]).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "settings"), [("qwen3", {}), ("gemma2", MIXED), ("phi3", {"sliding_window": 6})])
def test_a_float16_cache(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "model", kind, **settings)
    report = export(source, tmp_path / "out", embedding="float32", kv_cache="float16")
    ids = random_ids(3)
    mask = (np.arange(ids.shape[1]) >= np.array(PADDING)[:, None]).astype(np.int64)
    expected = reference_logits(dequantized(source, report), ids, mask)
    difference = largest_difference(stepwise_logits(exact_session(report.path), ids, mask, PROMPT), expected, mask)
    assert TOLERANCE / 20 < difference < 3e-3  # the rounding of keys and values shows, and is all
    runtime = fairy2i_runtime.load(report.path, kernel="exact")
    assert runtime.decoder.cache_shape.dtype == np.float16
    alone = runtime.logits(ids[0].tolist())
    np.testing.assert_allclose(alone, expected[0], rtol=0, atol=3e-3 * np.abs(expected[0]).max())


@pytest.mark.parametrize("scaling", ["linear:4", "yarn:2.5"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text", "olmo2"])
def test_the_context_can_be_stretched(tmp_path: Path, kind: str, scaling: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As transformers does it when config.json says so: verify writes it in there before it compares."""
    source = save_tiny(tmp_path / "model", kind, max_position_embeddings=16)
    assert export(source, tmp_path / "plain").options.context_length == 16
    report = export(source, tmp_path / "out", rope_scaling=scaling)
    assert report.options.context_length == (64 if scaling == "linear:4" else 40)
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{number}" for number in random_ids(1)[0] if number < 90))
    main(["verify", str(report.path), "--against", str(source), "--text", str(text)])
    printed = capsys.readouterr().out
    assert "exact : torch" in printed
    assert "logits of exact mode differ" not in printed


@pytest.mark.parametrize(
    ("kind", "settings", "scaling", "words"),
    [
        ("llama", {}, "yarn", "expected linear:FACTOR or yarn:FACTOR"),
        ("llama", {}, "llama3:4", "expected linear:FACTOR or yarn:FACTOR"),
        ("llama", {}, "linear:0.5", "above 1"),
        ("llama", {}, "linear:nan", "above 1"),
        ("llama", {"rope_parameters": LLAMA3}, "linear:2", "one already"),
        ("phi3", {}, "yarn:2", "longrope only"),
    ],
)
def test_impossible_stretching_is_explained(
    tmp_path: Path, kind: str, settings: dict[str, Any], scaling: str, words: str
) -> None:
    source = save_tiny(tmp_path / "model", kind, **settings)
    with pytest.raises(OptionError, match=words):
        export(source, tmp_path / "out", rope_scaling=scaling)


def test_a_fused_matrix_is_one_node(tmp_path: Path) -> None:
    """Training quantizes a module's weight as one matrix: its scales are those of the whole."""
    source = save_tiny(tmp_path / "model", "phi3")
    report = export(source, tmp_path / "out", exclude=["*.1.self_attn.qkv_proj"])
    names = [linear.name for linear in report.rewritten]
    assert names[:4] == [
        f"model.layers.0.{part}" for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")
    ] + ["model.layers.0.mlp.down_proj"]
    assert [linear.name for linear in report.kept] == ["model.layers.1.self_attn.qkv_proj"]
    model = onnx.load(report.path / "model.onnx", load_external_data=False)
    shapes = {
        node.name: (node.attribute[1].i, node.attribute[0].i) for node in model.graph.node if node.domain == "ai.fairy2i"
    }
    assert shapes["model.layers.0.self_attn.qkv_proj"] == (64 + 2 * 32, 48)
    assert shapes["model.layers.0.mlp.gate_up_proj"] == (2 * 72, 48)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"])
def test_graphs_are_valid(tmp_path: Path, kind: str) -> None:
    report = export(save_tiny(tmp_path / "model", kind), tmp_path / "out")
    onnx.checker.check_model(str(report.path / "model.onnx"), full_check=True)
    model = onnx.load(report.path / "model.onnx", load_external_data=False)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


@pytest.mark.parametrize("options", [{"lm_head": "int8"}, {"lm_head": "int4", "embedding": "int8"}, {"lm_head": "float"}])
@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "phi3"])
def test_storage_of_embedding_and_head(tmp_path: Path, kind: str, options: dict[str, str]) -> None:
    source = save_tiny(tmp_path / "model", kind)
    report = export(source, tmp_path / "out", **options)
    assert report.kept[0].name == "lm_head"
    ids = random_ids(2)
    expected = reference_logits(dequantized(source, report), ids, np.ones_like(ids))
    difference = largest_difference(
        stepwise_logits(exact_session(report.path), ids, np.ones_like(ids), PROMPT), expected, ids
    )
    assert difference < (0.3 if options["lm_head"] == "int4" else 0.05)


@pytest.mark.parametrize("kind", ["gemma3_text", "phi3"])
def test_verify_compares_with_transformers(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_tiny(tmp_path / "model", kind)
    export(source, tmp_path / "out")
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{number}" for number in random_ids(1)[0] if number < 90))  # words of the tiny tokenizer
    main(["verify", str(tmp_path / "out"), "--against", str(source), "--text", str(text)])
    printed = capsys.readouterr().out
    assert "exact : torch" in printed
    assert "logits of exact mode differ" not in printed
    assert "layers differ from the source" not in printed


GENAI = [
    ("mistral", {"sliding_window": 6}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("smollm3", {}),
    ("gemma2", MIXED),
    ("gemma3_text", MIXED),
    ("phi3", {}),
    ("olmo2", {}),
]


@pytest.mark.parametrize(("kind", "settings"), GENAI)
def test_onnxruntime_genai_runs_it(
    tmp_path: Path, kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text, and a batch of three padded on the right."""
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    ctypes.CDLL(fairy2i_runtime.library_path())
    report = export(save_tiny(tmp_path / "model", kind, **settings), tmp_path / "out")
    texts = [[3, 17, 44, 60, 21, 9, 33], [5, 6, 7], [50, 60, 70, 80, 11]]
    runtime = fairy2i_runtime.load(report.path, kernel="exact")
    expected = [runtime.generate(text, max_new_tokens=13, ignore_eos=True).token_ids for text in texts]
    unused = min(set(range(3, VOCABULARY)) - {token for row in expected for token in row})
    config = genai.Config(str(report.path))
    config.overlay(json.dumps({"model": {"eos_token_id": unused}}))
    model = genai.Model(config)
    for rows in (texts[:1], texts):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=20, batch_size=len(rows))
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array([row + [0] * (7 - len(row)) for row in rows], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        for number in range(len(rows)):
            assert [int(token) for token in generator.get_sequence(number)][7:] == expected[number]


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """``auto_map`` names Python files that transformers would run on request: they are not even read."""
    source = make_checkpoint(tmp_path / "model")
    mark = tmp_path / "ran"
    (source / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    edit_json(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    report = export(source, tmp_path / "out")
    main(["verify", str(report.path), "--against", str(source), "--tokens", "8"])
    assert not mark.exists()
    assert not list(report.path.glob("*.py"))
    edit_json(source / "config.json", architectures=["EvilForCausalLM"])
    with pytest.raises(ArchitectureError, match="EvilForCausalLM is not supported"):
        export(source, tmp_path / "other")


def test_the_table_is_complete() -> None:
    """Every architecture is tested above, and says its own name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kinds = {case.values[0] for case in CASES}
    classes = {AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))].__name__ for kind in kinds}
    assert classes == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, ArchitectureError, r"Gemma3ForCausalLM.*model\.onnx"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, CheckpointError, "2 layers each"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": 2 * ["chunked"]}, ArchitectureError, "'chunked'"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": 2 * ["sliding_attention"], "use_sliding_window": False},
            CheckpointError,
            "sliding_window is missing",
        ),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, CheckpointError, "no_rope_layers"),
        ({"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": 5.0}, ArchitectureError, "softcapping"),
        ({"architectures": ["Gemma2ForCausalLM"], "use_bidirectional_attention": True}, ArchitectureError, "looks back"),
        (
            {"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu"},
            ArchitectureError,
            "hidden_activation 'gelu'",
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "head_dim": 20}, ArchitectureError, "heads of 20 values.*multiple of 8"),
        ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.3}, ArchitectureError, "rotates 7 of 24"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, CheckpointError, "sliding_window"),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"x": {}}}, CheckpointError, "rope_parameters"),
    ],
)
def test_what_cannot_be_exported_is_explained(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    sizes = {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 24, "intermediate_size": 80}
    config = {**sizes, "num_hidden_layers": 2, "vocab_size": 96, "max_position_embeddings": 64, **changes}
    with pytest.raises(error, match=words):
        describe(config)
