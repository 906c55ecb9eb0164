"""Several texts together: every one as it would be alone, and as transformers has it with left padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fairy2i_runtime
from architecture_helpers import dequantized, reference_logits, save_tiny
from fairy2i_export import export
from fairy2i_runtime import Model, load
from fairy2i_runtime.engine.batch import Batch
from fairy2i_runtime.errors import ContextError, OptionError
from runtime_models import stories_folder

PROMPTS = ["Once upon a time", "Lily saw a big dog. The dog was", "Tom"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(stories_folder(), kernel="exact")


def test_texts_come_out_as_alone(model: Model) -> None:
    together = model.generate_batch(PROMPTS, max_new_tokens=60)
    for prompt, result in zip(PROMPTS, together, strict=True):
        alone = model.generate(prompt, max_new_tokens=60)
        assert (result.token_ids, result.text, result.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    assert together[0].timings.decode_tokens == 3 * 59


def test_logits_equal_those_of_the_single_texts(model: Model) -> None:
    texts = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    for text, logits in zip(texts, model.logits_batch(texts), strict=True):
        np.testing.assert_allclose(logits, model.logits(text), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["gemma3_text", "phi3"])
def test_equals_transformers_with_left_padding(tmp_path: Path, kind: str) -> None:
    source = save_tiny(tmp_path / "model", kind, sliding_window=6)
    report = export(source, tmp_path / "out", embedding="float32")
    texts = [[3, 17, 44, 60, 21, 9, 33, 12, 50], [5, 6], [50, 60, 70, 80, 11, 4]]
    steps = np.random.default_rng(0).integers(3, 90, (20, 3))
    batch = Batch(fairy2i_runtime.load(report.path, kernel="exact").decoder, texts, 20)
    prompts = batch.read()
    decoded = np.stack([batch.append(step.tolist()) for step in steps], axis=1)
    assert batch.room == 0

    ids = np.array([[0] * (9 - len(text)) + text for text in texts])
    mask = np.array([[0] * (9 - len(text)) + [1] * len(text) for text in texts])
    reference = dequantized(source, report)
    expected = reference_logits(reference, np.hstack([ids, steps.T]), np.hstack([mask, np.ones((3, 20), np.int64)]))
    tolerance = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(decoded, expected[:, 9:], rtol=0, atol=tolerance)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(prompts[row], expected[row, 9 - len(text) : 9], rtol=0, atol=tolerance)


def test_texts_end_each_in_its_own_way(model: Model) -> None:
    alone = [model.generate(prompt, max_new_tokens=30) for prompt in PROMPTS]
    stop = alone[0].text[20:26]
    results = model.generate_batch(PROMPTS, max_new_tokens=30, stop=stop)
    assert (results[0].finish_reason, results[0].text) == ("stop", alone[0].text[: alone[0].text.index(stop)])
    assert results[1].text == alone[1].text.partition(stop)[0]
    eos_ids, model.eos_ids = model.eos_ids, frozenset([alone[1].token_ids[4]])
    try:
        ended = model.generate_batch(PROMPTS, max_new_tokens=30)
        assert ended[1].finish_reason == "eos"
        assert ended[1].token_ids == alone[1].token_ids[: alone[1].token_ids.index(alone[1].token_ids[4])]
        ended = model.generate_batch(PROMPTS, max_new_tokens=30, ignore_eos=True)
        assert [result.token_ids for result in ended] == [result.token_ids for result in alone]
    finally:
        model.eos_ids = eos_ids


def test_a_seed_counts_for_every_text(model: Model) -> None:
    options = {"max_new_tokens": 15, "temperature": 0.9, "top_k": 20, "seed": 5}
    same = model.generate_batch([PROMPTS[0], PROMPTS[0]], **options)
    assert same[0].token_ids == same[1].token_ids == model.generate(PROMPTS[0], **options).token_ids


def test_the_context_ends_all() -> None:
    small = load(stories_folder(), context_length=24, kernel="exact")
    results = small.generate_batch(PROMPTS, max_new_tokens=None)
    longest = max(len(small.tokenizer.encode(prompt)) for prompt in PROMPTS)
    assert {result.finish_reason for result in results} == {"context"}
    assert {len(result.token_ids) for result in results} == {24 - longest + 1}


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ([], OptionError, "at least one text"),
        ([[1], []], OptionError, "at least one token in each"),
        ([[1], [600]], OptionError, "vocabulary of 512"),
        ([[1], [5] * 600], ContextError, "600 tokens .* 512"),
    ],
)
def test_mistakes_are_explained(model: Model, texts: list[list[int]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model.logits_batch(texts)
    with pytest.raises(error, match=words):
        model.generate_batch(texts)


def test_a_prompt_that_fills_the_context_is_refused(model: Model) -> None:
    with pytest.raises(ContextError, match="512 tokens and the context holds 512"):
        model.generate_batch([[5] * 512, [1]])
    batch = Batch(model.decoder, [[5, 6], [7]])
    batch.read()
    with pytest.raises(ContextError, match="full"):
        batch.append([1, 2])
