"""What every architecture can be combined with: caches, padding, storage, stretched contexts, verification, genai."""

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
    LLAMA3,
    MIXED,
    PADDING,
    PROMPT,
    STEPS,
    TOLERANCE,
    VOCABULARY,
    dequantized,
    exact_session,
    largest_difference,
    random_ids,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import SharedCache
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_export.errors import OptionError


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


def test_a_long_prompt_is_read_in_pieces(tmp_path: Path) -> None:
    """The runtime gives the graph 128 tokens at a time; the window reaches from one piece into the one before."""
    source = save_tiny(tmp_path / "model", "gemma2", max_position_embeddings=320, **{**MIXED, "sliding_window": 40})
    report = export(source, tmp_path / "out", embedding="float32")
    ids = random_ids(1, 300)
    expected = reference_logits(dequantized(source, report), ids, np.ones_like(ids))[0]
    logits = fairy2i_runtime.load(report.path, kernel="exact").logits(ids[0].tolist())
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def test_odd_dimensions_of_a_fused_model(tmp_path: Path) -> None:
    """Two odd halves make an even gate_up matrix, which is rewritten; what reads an odd number of values stays dense."""
    source = save_tiny(tmp_path / "model", "phi3", intermediate_size=73)
    report = export(source, tmp_path / "out", embedding="float32")
    assert {linear.name.rpartition(".")[2] for linear in report.kept} == {"down_proj"}
    assert {linear.reason for linear in report.kept} == {"odd dimension"}
    ids = random_ids(2)
    expected = reference_logits(dequantized(source, report), ids, np.ones_like(ids))
    got = stepwise_logits(exact_session(report.path), ids, np.ones_like(ids), PROMPT)
    assert largest_difference(got, expected, ids) < TOLERANCE
