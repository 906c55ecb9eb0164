"""Token choice: every step against transformers' own processors, and the draws against exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairy2i_runtime.errors import Fairy2iRuntimeError, OptionError
from fairy2i_runtime.text.sampling import Sampler, SamplingOptions, keep_top_k, keep_top_p, penalize, softmax


def random_logits(seed: int, size: int = 500) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 4).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "argument", "ours"),
    [
        ("TopKLogitsWarper", 1, lambda scores: keep_top_k(scores, 1)),
        ("TopKLogitsWarper", 37, lambda scores: keep_top_k(scores, 37)),
        ("TopKLogitsWarper", 9999, lambda scores: keep_top_k(scores, 9999)),
        ("TopPLogitsWarper", 0.01, lambda scores: keep_top_p(scores, 0.01)),
        ("TopPLogitsWarper", 0.5, lambda scores: keep_top_p(scores, 0.5)),
        ("TopPLogitsWarper", 0.95, lambda scores: keep_top_p(scores, 0.95)),
    ],
)
def test_filters_equal_transformers(name, argument, ours, seed):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores = random_logits(seed)
    expected = getattr(processors, name)(argument)(None, torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(ours(scores), expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_transformers(penalty):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores, tokens = random_logits(1), [3, 3, 7, 499, 0]
    processor = processors.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([tokens]), torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_array_equal(penalize(scores, tokens, penalty), expected)
    np.testing.assert_array_equal(scores, random_logits(1))  # the argument is left alone


def test_the_steps_come_in_the_order_of_transformers():
    """Penalty, temperature, top-k, top-p: the probabilities of many draws are those of transformers' chain."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores, tokens = random_logits(2, 30), [1, 5, 9]
    chain = [
        processors.RepetitionPenaltyLogitsProcessor(1.8),
        processors.TemperatureLogitsWarper(2.5),
        processors.TopKLogitsWarper(12),
        processors.TopPLogitsWarper(0.8),
    ]
    state = torch.tensor(scores)[None]
    for step in chain:
        state = step(torch.tensor([tokens]), state)
    expected = torch.softmax(state, -1)[0].numpy()
    sampler = Sampler(SamplingOptions(temperature=2.5, top_k=12, top_p=0.8, repetition_penalty=1.8, seed=3))
    draws = 20_000
    counts = np.bincount([sampler.next(scores, tokens) for _ in range(draws)], minlength=30)
    assert set(counts.nonzero()[0]) <= set(expected.nonzero()[0])
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(counts / draws - expected) <= 5 * deviation).all()


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40), st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_sufficient_set(values, p):
    scores = np.array(values, np.float32)
    kept = np.isfinite(keep_top_p(scores, p))
    probabilities = softmax(scores)
    assert probabilities[kept].sum() >= min(p, 1) - 1e-9
    if kept.sum() > 1:
        assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-9
    assert kept.all() or scores[kept].min() >= scores[~kept].max()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(1, 40))
def test_top_k_keeps_the_k_largest_and_their_equals(values, k):
    scores = np.array(values, np.float32)
    smallest = sorted(values, reverse=True)[min(k, len(values)) - 1]
    np.testing.assert_array_equal(np.isfinite(keep_top_k(scores, k)), scores >= smallest)


def test_greedy_takes_the_first_of_equals_after_the_penalty():
    assert Sampler(SamplingOptions()).next(np.array([0, 3, 3], np.float32), []) == 1
    assert Sampler(SamplingOptions(repetition_penalty=1.1)).next(np.array([0, 3, 3], np.float32), [1]) == 2
    assert Sampler(SamplingOptions(repetition_penalty=1.1)).next(np.array([-1, -1.05], np.float32), [0]) == 1


def test_equal_seeds_give_equal_draws_and_others_do_not():
    scores = random_logits(4)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.next(scores, []) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_reported(bad, temperature):
    scores = random_logits(5)
    scores[7] = bad
    with pytest.raises(Fairy2iRuntimeError, match="not finite"):
        Sampler(SamplingOptions(temperature=temperature)).next(scores, [])


def test_minus_infinity_is_never_drawn():
    scores = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    sampler = Sampler(SamplingOptions(temperature=1, seed=0))
    assert {sampler.next(scores, []) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "warm"),
        ("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_p", 0), ("top_p", 1.01), ("top_p", float("nan")),
        ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", 5e-324),
        ("repetition_penalty", 1e9), ("seed", -1), ("seed", 0.5),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(OptionError, match=f"^{name}: expected"):
        SamplingOptions(**{name: value})


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-39, 1e-30, 1e-7])
def test_a_temperature_near_nothing_takes_the_most_likely_token(temperature):
    logits = np.array([1.0, 3.0, 2.0, -1e30], np.float32)
    assert Sampler(SamplingOptions(temperature=temperature, seed=0)).next(logits, []) == 1
