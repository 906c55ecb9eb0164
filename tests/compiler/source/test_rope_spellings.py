"""Old and new spelling of rotary embeddings, alone and side by side: they mean what transformers takes them for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architecture_helpers import (
    TOLERANCE,
    dequantized,
    exact_session,
    largest_difference,
    random_ids,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import edit_json
from fairy2i_export import export
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.decoder.rope import read_rope, spelling_warnings, stretch_context
from fairy2i_export.errors import ArchitectureError, CheckpointError, OptionError
from fairy2i_export.onnx_graph.rope_tables import rotary_tables
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.transformers_model import meta_model

POSITIONS = 96
PLAIN = {"rope_type": "default", "rope_theta": 20000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
OLD_LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THETA = {"rope_theta": 500000.0}
SHORT = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", **SHORT}

# entries of config.json about rope
FLAT: dict[str, dict[str, Any]] = {
    "new": {"rope_parameters": {**LLAMA3, **THETA}},
    "old": {"rope_scaling": OLD_LINEAR, "rope_theta": 30000.0},
    "theta beside and inside": {"rope_parameters": PLAIN, "rope_theta": 30000.0},
    "theta beside only": {"rope_parameters": LINEAR, "rope_theta": 30000.0},
    "both, yarn wins": {"rope_parameters": PLAIN, "rope_scaling": {"type": "yarn", **YARN}},
    "both, linear wins": {"rope_parameters": {**YARN, **THETA}, "rope_scaling": OLD_LINEAR},
    "both, llama3 wins": {"rope_parameters": PLAIN, "rope_scaling": LLAMA3, **THETA},
    "both, default wins": {"rope_parameters": {**LINEAR, **THETA}, "rope_scaling": {"rope_type": "default"}},
    "both, theta in the loser": {"rope_parameters": {"rope_type": "default", **THETA}, "rope_scaling": LINEAR},
    "both, theta in the winner": {"rope_parameters": PLAIN, "rope_scaling": {**LINEAR, **THETA}, "rope_theta": 7.0},
    "both, the old one empty": {"rope_parameters": {**LINEAR, **THETA}, "rope_scaling": {}},
    "both, the old one null": {"rope_parameters": {**YARN, **THETA}, "rope_scaling": None},
    "both, the new one null": {"rope_parameters": None, "rope_scaling": LINEAR, "rope_theta": 30000.0},
    "rope_type and type": {"rope_scaling": {**LINEAR, "type": "yarn"}, "rope_theta": 30000.0},
    "original beside and inside": {"rope_parameters": {**YARN, **THETA}, "original_max_position_embeddings": 24},
    "original beside, old": {"rope_scaling": {**LLAMA3}, "rope_theta": 30000.0, "original_max_position_embeddings": 64},
    "no original": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}},
}
GEMMA3: dict[str, dict[str, Any]] = {
    "new": {"rope_parameters": {"full_attention": {**LINEAR, **THETA}, "sliding_attention": PLAIN}},
    "old": {"rope_scaling": LINEAR, "rope_theta": 30000.0, "rope_local_base_freq": 5000.0},
    "nothing": {},
    "half": {"rope_parameters": {"full_attention": LINEAR}},
    "half, the rest beside": {
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
        "rope_theta": 30000.0,
        "rope_local_base_freq": 5000.0,
    },
    "both": {"rope_parameters": {"full_attention": {**PLAIN}, "sliding_attention": PLAIN}, "rope_scaling": LINEAR},
    "both, merged": {
        "rope_parameters": {"full_attention": {**YARN, **THETA}, "sliding_attention": PLAIN},
        "rope_scaling": {"factor": 2.0, "beta_fast": 8.0},
        "rope_local_base_freq": 5000.0,
    },
    "original beside": {
        "rope_parameters": {"full_attention": {**YARN, **THETA}, "sliding_attention": PLAIN},
        "original_max_position_embeddings": 32,
    },
}
PHI3: dict[str, dict[str, Any]] = {
    "new": {"rope_parameters": {**LONGROPE, **PLAIN, "rope_type": "longrope"}, "original_max_position_embeddings": 48},
    "old": {"rope_scaling": {"type": "longrope", **SHORT}, **THETA, "original_max_position_embeddings": 48},
    "both": {"rope_parameters": PLAIN, "rope_scaling": LONGROPE, "original_max_position_embeddings": 128},
    "original inside only": {"rope_parameters": {**LONGROPE, **THETA, "original_max_position_embeddings": 48}},
    "part beside": {"rope_parameters": PLAIN, "partial_rotary_factor": 0.5},
    "part beside and inside": {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.5},
}
CASES = [
    *(pytest.param("llama", entry, id=f"llama, {name}") for name, entry in FLAT.items()),
    *(pytest.param("qwen2", entry, id=f"qwen2, {name}") for name, entry in FLAT.items() if "both" in name),
    *(pytest.param("smollm3", entry, id=f"smollm3, {name}") for name, entry in FLAT.items() if "theta" in name),
    *(pytest.param("gemma3_text", entry, id=f"gemma3, {name}") for name, entry in GEMMA3.items()),
    *(pytest.param("phi3", entry, id=f"phi3, {name}") for name, entry in PHI3.items()),
]


def config_json(kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    mixed = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8} if kind == "gemma3_text" else {}
    head = {} if kind == "phi3" else {"head_dim": 16}
    name = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))].__name__
    return {"architectures": [name], "model_type": kind, **sizes, **head, **mixed, **entry}


def tables_of_transformers(directory: Path, layer_type: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    arguments = {} if layer_type is None else {"layer_type": layer_type}
    rotary = model.model.rotary_emb
    cos, sin = rotary(torch.zeros(1, 1), torch.arange(POSITIONS)[None], **arguments)
    return cos[0].numpy(), sin[0].numpy()


@pytest.mark.parametrize(("kind", "entry"), CASES)
def test_every_spelling_means_what_transformers_takes_it_for(tmp_path: Path, kind: str, entry: dict[str, Any]) -> None:
    config = config_json(kind, entry)
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = json.dumps(config)
    for layer, block in enumerate(describe(config).blocks):
        layer_type = config["layer_types"][layer] if kind == "gemma3_text" else None
        assert block.rope is not None
        for got, expected in zip(
            rotary_tables(block.rope, 16, POSITIONS), tables_of_transformers(tmp_path, layer_type), strict=True
        ):
            assert got.shape[1] * 2 == expected.shape[1]
            np.testing.assert_allclose(got, expected[:, : got.shape[1]], atol=5e-7)
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ("kind", "entry", "words"),
    [
        ("llama", FLAT["both, yarn wins"], "rope_scaling counts and the other does not"),
        ("llama", FLAT["both, theta in the loser"], "does not, also without its rope_theta"),
        ("gemma3_text", GEMMA3["both"], "the values of rope_scaling count for full layers"),
        ("llama", FLAT["new"], None),
        ("llama", FLAT["both, the old one empty"], None),
        ("llama", {"rope_parameters": LINEAR, "rope_scaling": dict(LINEAR)}, None),
        (
            "llama",
            {"rope_theta": 700.0, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
            "rope_theta 50.0 counts, and rope_theta beside it (700.0) does not",
        ),
        (
            "llama",
            {"rope_theta": 700.0, "rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
            "rope_type linear counts, and type (default) does not",
        ),
    ],
)
def test_a_warning_says_which_one_counts(kind: str, entry: dict[str, Any], words: str | None) -> None:
    found = spelling_warnings(config_json(kind, entry))
    assert bool(found) is (words is not None)
    assert words is None or words in found[0]


@pytest.mark.parametrize(
    ("kind", "entry", "error", "words"),
    [
        (
            "llama",
            {"rope_parameters": PLAIN, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ArchitectureError,
            "'dynamic'",
        ),
        ("qwen3", GEMMA3["new"], CheckpointError, "rope_parameters: full_attention, sliding_attention: only Gemma 3"),
        (
            "llama",
            {"rope_scaling": {"full_attention": LINEAR}},
            CheckpointError,
            "rope_scaling: full_attention: only Gemma 3",
        ),
        ("gemma3_text", {"rope_scaling": OLD_LINEAR}, CheckpointError, 'rope_scaling: "type" is the older name'),
        ("gemma3_text", {"rope_parameters": PLAIN}, CheckpointError, "rope_parameters: expected objects full_attention and"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": PLAIN}, "rope_scaling": LINEAR},
            CheckpointError,
            "rope_scaling is for full layers, and rope_parameters is there too",
        ),
    ],
)
def test_what_transformers_does_not_define_is_refused_by_name(
    kind: str, entry: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        describe(config_json(kind, entry))


@pytest.mark.parametrize("scaling", ["linear:2", "yarn:4"])
@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("llama", {"rope_theta": 30000.0}),
        ("llama", {"rope_parameters": PLAIN}),
        ("llama", {"rope_parameters": {**LINEAR, **THETA}, "rope_scaling": {"rope_type": "default"}}),
        ("qwen2", {"rope_parameters": PLAIN, "rope_scaling": {"type": "default", "rope_theta": 7000.0}}),
        ("llama", {"rope_parameters": PLAIN, "original_max_position_embeddings": 12}),
        ("gemma3_text", {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}}),
        ("gemma3_text", {"rope_parameters": {"full_attention": PLAIN}, "rope_scaling": THETA}),
        ("gemma3_text", {"rope_theta": 30000.0, "rope_local_base_freq": 5000.0}),
    ],
)
def test_stretching_knows_both_spellings(tmp_path: Path, kind: str, entry: dict[str, Any], scaling: str) -> None:
    """The description and the model of transformers that it is compared with are made of the same settings."""
    config = config_json(kind, entry)
    stretched = stretch_context(config, scaling)
    assert stretched["max_position_embeddings"] == POSITIONS * int(scaling[-1])
    full = describe(stretched).blocks[-1].rope
    plain = describe(config).blocks[-1].rope
    assert full is not None
    assert plain is not None
    assert (full.kind, full.factor, full.theta) == (scaling[:-2], float(scaling[-1]), plain.theta)
    assert full.kind != "yarn" or full.original_max_positions == POSITIONS
    (tmp_path / "config.json").write_text(json.dumps(stretched))
    layer_type = "full_attention" if kind == "gemma3_text" else None
    for got, expected in zip(rotary_tables(full, 16, POSITIONS), tables_of_transformers(tmp_path, layer_type), strict=True):
        np.testing.assert_allclose(got, expected[:, : got.shape[1]], atol=5e-7)
    if kind == "gemma3_text":
        assert describe(stretched).blocks[0].rope == describe(config).blocks[0].rope


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("llama", {"rope_parameters": PLAIN, "rope_scaling": OLD_LINEAR}),
        ("llama", {"rope_parameters": {**LINEAR, **THETA}}),
        ("gemma3_text", GEMMA3["both"]),
    ],
)
def test_what_scales_already_is_not_stretched(kind: str, entry: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="one already"):
        stretch_context(config_json(kind, entry), "linear:2")


LOGITS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": ("llama", {}, {"rope_parameters": {"rope_type": "default", **THETA}, "rope_scaling": OLD_LINEAR}),
    "llama3": ("llama", {}, {"rope_parameters": PLAIN, "rope_scaling": LLAMA3, **THETA}),
    "yarn": ("qwen2", {}, {"rope_parameters": PLAIN, "rope_scaling": {"type": "yarn", **YARN}}),
    "longrope": (
        "phi3",
        {"hidden_size": 64},
        {"rope_parameters": PLAIN, "rope_scaling": LONGROPE, "original_max_position_embeddings": 48},
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}, "rope_scaling": YARN},
    ),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_logits_with_both_spellings_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    model_type, settings, entry = LOGITS[kind]
    source = save_tiny(tmp_path / "model", model_type, **settings)
    edit_json(source / "config.json", **entry)
    report = export(source, tmp_path / "out", embedding="float32", context_length=48)
    assert any("rope_scaling" in warning for warning in report.warnings)
    ids = random_ids(1)
    mask = np.ones_like(ids)
    expected = reference_logits(dequantized(source, report), ids, mask)
    assert largest_difference(stepwise_logits(exact_session(report.path), ids, mask, 12), expected, mask) < TOLERANCE
    edit_json(source / "config.json", rope_scaling=None)
    assert largest_difference(reference_logits(dequantized(source, report), ids, mask), expected, mask) > 100 * TOLERANCE


def test_the_model_to_compare_with_is_stretched_alike(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", "llama")
    edit_json(source / "config.json", rope_parameters=PLAIN, rope_scaling={"rope_type": "default", **THETA})
    checkpoint = open_checkpoint(source)
    _, config = meta_model(checkpoint, "yarn:2", "eager")
    rope = read_rope(stretch_context(checkpoint.config, "yarn:2"), 128)
    assert (config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]) == ("yarn", 500000.0)
    assert config.rope_parameters["original_max_position_embeddings"] == rope.original_max_positions == 64
