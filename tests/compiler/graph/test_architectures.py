"""Every architecture against transformers: prompt and 20 single tokens, one text, and a batch of three with left padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architecture_helpers import (
    CASES,
    LONGROPE,
    PADDING,
    PROMPT,
    TOLERANCE,
    dequantized,
    exact_session,
    largest_difference,
    random_ids,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_export.decoder.architectures import ARCHITECTURES, describe, ifairy
from fairy2i_export.errors import ArchitectureError, CheckpointError


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
    assert classes == set(ARCHITECTURES) - {ifairy.NAME}  # test_ifairy.py: transformers has no such class


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


def test_gemma3_in_its_older_spelling() -> None:
    """Before transformers 5: both rotary embeddings side by side, the pattern as one number, the scaling for full layers."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 80, "num_hidden_layers": 6}
    common = {"architectures": ["Gemma3ForCausalLM"], "vocab_size": 96, "sliding_window": 12, **sizes}
    old = {
        "rope_theta": 2000000.0,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    }
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        "layer_types": 2 * ["sliding_attention", "sliding_attention", "full_attention"],
    }
    assert describe({**common, **old}) == describe({**common, **new})
    plain = describe(common)
    assert [(block.window, block.rope and block.rope.theta) for block in plain.blocks] == 5 * [(12, 1e4)] + [(None, 1e6)]


def test_configurations_as_the_hub_spells_them() -> None:
    phi4_mini = {
        "architectures": ["Phi3ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "vocab_size": 200064,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": 48 * [1.0], "long_factor": 48 * [2.0]},
        "rope_theta": 10000.0,
    }
    decoder = describe(phi4_mini)
    (rope,) = decoder.ropes
    assert (decoder.head_dim, rope.rotated(128), rope.original_max_positions) == (128, 96, 4096)
    assert rope.table_scale == pytest.approx((1 + 5 / 12) ** 0.5)  # log2(131072 / 4096) = 5, log2(4096) = 12
    qwen25 = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "vocab_size": 151936,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    }
    decoder = describe(qwen25)
    assert {block.window for block in decoder.blocks} == {None}
    assert decoder.max_positions == 4 * 32768
    assert decoder.qkv_bias
    assert not decoder.o_bias


def test_longrope_beyond_the_original_context(tmp_path: Path) -> None:
    """A text of 32 tokens where the short factors end at 16: with the long ones it equals transformers, which now takes them."""
    settings = {"original_max_position_embeddings": 16, "hidden_size": 64, "max_position_embeddings": 96}
    source = save_tiny(tmp_path / "model", "phi3", rope_parameters=LONGROPE, **settings)
    report = export(source, tmp_path / "out", embedding="float32")
    assert any("longrope's long factors" in warning for warning in report.warnings)
    ids = random_ids(1)
    expected = reference_logits(dequantized(source, report), ids, np.ones_like(ids))
    session = exact_session(report.path)
    assert largest_difference(stepwise_logits(session, ids, np.ones_like(ids), PROMPT), expected, ids) < TOLERANCE
    short = export(source, tmp_path / "short", context_length=16)
    assert not any("longrope" in warning for warning in short.warnings)
