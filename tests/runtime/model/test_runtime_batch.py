"""Several texts together: every one as it would be alone, and as transformers has it with left padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    assert batch.lengths == [29, 22, 26]
    assert [batch.room(number) for number in range(3)] == [0, 7, 3]

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


@pytest.fixture(scope="module", params=["float32", "float16", "int8", "window", "phi3"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Models of a context of 48 tokens, with every type of cache and with sliding windows."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = {"window": "gemma3_text", "phi3": "phi3"}.get(request.param, "llama")
    settings = {} if kind == "llama" else {"sliding_window": 6}
    source = save_tiny(folder / "model", kind, max_position_embeddings=48, **settings)
    cache = request.param if kind == "llama" else "float32"
    return load(export(source, folder / "out", embedding="float32", kv_cache=cache, context_length=48).path, kernel="exact")


def same_as_alone(model: Model, lengths: list[int], **options: Any) -> None:
    """Texts of these lengths come out of a batch as they do alone: tokens, text and why they ended."""
    rng = np.random.default_rng(sum(lengths))
    prompts = [rng.integers(3, 90, length).tolist() for length in lengths]
    together = model.generate_batch(prompts, **options)
    for prompt, result in zip(prompts, together, strict=True):
        alone = model.generate(prompt, **options)
        assert (result.token_ids, result.text, result.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)


@pytest.mark.parametrize(
    "lengths", [[47, 1], [1, 47], [46, 2, 30], [20, 20], [5, 47, 40, 12, 1], [3, 9, 27], [47, 47, 1]], ids=str
)
@pytest.mark.parametrize("new", [1, 9, 30, None])
def test_each_text_has_its_own_context(small: Model, lengths: list[int], new: int | None) -> None:
    """Also where one fills the context to the last token, goes out of the window, or is long past its end."""
    same_as_alone(small, lengths, max_new_tokens=new, ignore_eos=True)


def test_random_mixes_come_out_as_alone(small: Model) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        lengths = rng.integers(1, 48, rng.integers(2, 6)).tolist()
        same_as_alone(small, lengths, max_new_tokens=int(rng.integers(1, 49)), ignore_eos=bool(rng.integers(2)))


def test_the_finish_reasons_at_the_limit_of_the_context(small: Model) -> None:
    prompts = [list(range(3, 3 + length)) for length in (47, 40, 38, 5)]
    results = small.generate_batch(prompts, max_new_tokens=10, ignore_eos=True)
    assert [result.finish_reason for result in results] == ["context", "context", "length", "length"]
    assert [len(result.token_ids) for result in results] == [2, 9, 10, 10]  # the last token needs no place in the cache


def test_logits_of_texts_up_to_the_whole_context(small: Model) -> None:
    texts = [np.random.default_rng(length).integers(3, 90, length).tolist() for length in (1, 48, 17, 47)]
    for text, logits in zip(texts, small.logits_batch(texts), strict=True):
        expected = small.logits(text)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_the_context_ends_each_text() -> None:
    small = load(stories_folder(), context_length=24, kernel="exact")
    results = small.generate_batch(PROMPTS, max_new_tokens=None)
    assert {result.finish_reason for result in results} == {"context"}
    lengths = [len(small.tokenizer.encode(prompt)) for prompt in PROMPTS]
    assert [len(result.token_ids) for result in results] == [24 - length + 1 for length in lengths]


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
