"""The int8 key-value cache: calibrated scales, what it costs, and that every way to run it agrees."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import fairy2i_runtime
from architecture_helpers import dequantized, largest_difference, reference_logits, save_tiny
from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_export.compile.result.cache_scales import key_scales
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import OptionError
from fairy2i_export.output.contract.logits import compare
from fairy2i_runtime.engine.batch import Batch
from runtime_models import CHECKPOINT, stories_folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "stories"
    export(CHECKPOINT, folder, kv_cache="int8")
    return folder


def scales_of(folder: Path) -> dict[str, np.ndarray]:
    model = onnx.load(folder / "model.onnx")
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_scale")}


def test_perplexity_hardly_changes(stories: Path) -> None:
    text = (ROOT / "examples/data/tinystories/tinystories_sample.txt").read_text(encoding="utf-8")
    model = fairy2i_runtime.load(stories, kernel="exact")
    assert model.decoder.cache_shape.dtype == np.int8
    ids = model.tokenizer.encode(text)[:500]
    # one token at a time: every score is taken from the cache
    cache = model.decoder.new_cache()
    rounded = np.stack([model.decoder.next_logits([token], cache) for token in ids])
    expected = fairy2i_runtime.load(stories_folder(), kernel="exact").logits(ids)
    result = compare(rounded, expected, np.array(ids))
    assert 1e-5 < result.mean_kl < 5e-3
    assert abs(result.log_ratio) < 0.02


def test_scales_are_those_of_the_text(stories: Path, tmp_path: Path) -> None:
    scales = scales_of(stories)
    assert len(scales) == 2 * 5
    assert all(scale.shape == (4 * 8,) and 0 < scale.min() < scale.max() < 1 for scale in scales.values())
    other = tmp_path / "text.txt"
    other.write_text("Tom had a red car. " * 20)
    export(CHECKPOINT, tmp_path / "out", kv_cache="int8", calibration=other)
    assert all((scale != scales[name]).any() for name, scale in scales_of(tmp_path / "out").items())
    onnx.checker.check_model(str(stories / "model.onnx"), full_check=True)


def test_scales_stored_as_external_data(tmp_path: Path) -> None:
    """More than 1 kB of them do not lie in model.onnx."""
    source = make_checkpoint(tmp_path / "model", num_attention_heads=4, num_key_value_heads=4, head_dim=72)
    export(source, tmp_path / "out", kv_cache="int8")
    stored = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.initializer
    assert all(tensor.external_data for tensor in stored if tensor.name.endswith("_scale"))
    assert all((scale < 0.5).all() for scale in scales_of(tmp_path / "out").values())


@pytest.mark.parametrize("kind", ["gemma3_text", "smollm3", "phi3"])
def test_a_batch_with_left_padding(tmp_path: Path, kind: str) -> None:
    source = save_tiny(tmp_path / "model", kind, num_hidden_layers=4, use_sliding_window=True, sliding_window=6)
    (tmp_path / "text").write_text(" ".join(f"w{number}" for number in range(3, 67)))
    report = export(source, tmp_path / "out", kv_cache="int8", calibration=tmp_path / "text", embedding="float32")
    texts = [[3, 17, 44, 60, 21, 9, 33, 12, 50], [5, 6, 70], [50, 60, 70, 80, 11, 4]]
    steps = np.random.default_rng(0).integers(3, 90, (10, 3))
    batch = Batch(fairy2i_runtime.load(report.path, kernel="exact").decoder, texts, 10)
    batch.read()
    decoded = np.stack([batch.append(step.tolist()) for step in steps], axis=1)
    ids = np.array([[0] * (9 - len(text)) + text for text in texts])
    mask = np.array([[0] * (9 - len(text)) + [1] * len(text) for text in texts])
    expected = reference_logits(
        dequantized(source, report), np.hstack([ids, steps.T]), np.hstack([mask, np.ones((3, 10), np.int64)])
    )[:, 9:]
    assert largest_difference(decoded, expected, np.ones(expected.shape[:2])) < 0.1


def test_genai_runs_it(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    ctypes.CDLL(fairy2i_runtime.library_path())
    runtime = fairy2i_runtime.load(stories, kernel="exact")
    ids = runtime.tokenizer.encode("Once upon a time")
    expected = runtime.generate(ids, max_new_tokens=50, ignore_eos=True).token_ids
    config = genai.Config(str(stories))
    config.overlay(json.dumps({"model": {"eos_token_id": 511}}))
    model = genai.Model(config)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(ids) + 50)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)][len(ids) :] == expected


def test_a_pair_of_rotated_channels_shares_its_length() -> None:
    decoder = describe(
        {
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 16,
            "num_attention_heads": 1,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "vocab_size": 4,
            "partial_rotary_factor": 0.5,
        }
    )
    keys = np.zeros((1, 2, 16), np.float32)
    keys[0, 0, [1, 5, 12]] = 3.0, -4.0, -2.0  # channels 1 and 5 are a pair, 12 is not rotated
    keys[0, 1, [1, 5]] = 0.1, 0.1
    scales = key_scales(keys, decoder, decoder.blocks[0]) * 127 / 1.1
    np.testing.assert_allclose(scales[[1, 5, 12]], [5.0, 5.0, 2.0], rtol=1e-6)
    assert (scales[[0, 2, 13]] < 1e-5).all()


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="only an int8 cache"):
        export(CHECKPOINT, tmp_path / "out", calibration=tmp_path / "text")
    with pytest.raises(OptionError, match="expected a UTF-8 text file"):
        export(CHECKPOINT, tmp_path / "out", kv_cache="int8", calibration=tmp_path / "missing")
    with pytest.raises(OptionError, match="kv cache: expected one of float32, float16, int8, got 'int4'"):
        export(CHECKPOINT, tmp_path / "out", kv_cache="int4")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "nothing.so"))
        with pytest.raises(OptionError, match="measured by running the model"):
            export(CHECKPOINT, tmp_path / "out", kv_cache="int8")
    assert not list(tmp_path.iterdir())


def test_verify_takes_the_rounding_into_account(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(stories), "--against", str(CHECKPOINT)]) == 0
    assert "fewer bits than in the source" in capsys.readouterr().out
