"""Choose the next token from the logits.

The steps and their order are those of Hugging Face transformers: repetition penalty, temperature, top-k, top-p, draw.
Temperature 0 takes the most likely token after the repetition penalty (the first one if several are equal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.errors import Fairy2iRuntimeError, check_option

F32 = npt.NDArray[np.float32]

_COLDEST = 1e-6  # below, no other token but the most likely one has a chance, and float32 overflows sooner or later


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token.

    Attributes:
        temperature: 0 = greedy; otherwise the logits are divided by it.
        top_k: keep only the k most likely tokens; 0 = all.
        top_p: keep the smallest set of most likely tokens with at least this much probability; 1 = all.
        repetition_penalty: logits of tokens that occurred (prompt included) are divided by it if positive, multiplied if
            negative; 1 = off.
        seed: makes the draws repeatable; None = different every time.

    Raises:
        OptionError: if a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_option(
            "temperature", self.temperature, Real, lambda t: 0 <= t < math.inf, "a finite number of at least 0 (0 = greedy)"
        )
        check_option("top_k", self.top_k, Integral, lambda k: k >= 0, "an integer of at least 0 (0 = off)")
        check_option("top_p", self.top_p, Real, lambda p: 0 < p <= 1, "a number above 0 and up to 1 (1 = off)")
        check_option(
            "repetition_penalty",
            self.repetition_penalty,
            Real,
            lambda r: 1e-6 <= r <= 1e6,
            "a number from 0.000001 to 1000000 (1 = off)",
        )
        if self.seed is not None:
            check_option("seed", self.seed, Integral, lambda n: n >= 0, "an integer of at least 0")


class Sampler:
    """Draws tokens according to some options, from one stream of random numbers."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def next(self, logits: F32, tokens: Sequence[int]) -> int:
        """Choose a token.

        Args:
            logits: float32 [vocab]; not changed.
            tokens: everything before, prompt and generated, for the repetition penalty.

        Raises:
            Fairy2iRuntimeError: if the largest logit is not finite.
        """
        if not np.isfinite(logits.max()):
            raise Fairy2iRuntimeError(
                "the model produced logits that are not finite (NaN or infinity); its weights are damaged, "
                "or training diverged: verify the model folder and export it again"
            )
        scores = penalize(logits, tokens, self.options.repetition_penalty)
        if self.options.temperature < _COLDEST:
            return int(scores.argmax())
        scores = keep_top_k(scores / np.float32(self.options.temperature), self.options.top_k)
        candidates = np.flatnonzero(scores > -np.inf)  # a few instead of the whole vocabulary, if top_k is on
        probabilities = softmax(keep_top_p(scores[candidates], self.options.top_p))
        cumulative = probabilities.cumsum()
        # the draw is scaled by the sum, which rounding can leave a little off 1
        index = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        return int(candidates[min(index, candidates.size - 1)])


def penalize(logits: F32, tokens: Sequence[int], penalty: float) -> F32:
    """Repetition penalty: the logits of ``tokens`` divided by ``penalty`` if positive, multiplied if negative."""
    if penalty == 1 or not len(tokens):
        return logits
    seen = np.unique(np.asarray(tokens, np.int64))
    scores = logits.copy()
    values = scores[seen]
    scores[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return scores


def keep_top_k(scores: F32, k: int) -> F32:
    """Scores below the k-th largest become -inf; equals of the k-th largest all stay. 0 keeps everything."""
    if k == 0 or k >= scores.size:
        return scores
    smallest_kept = np.partition(scores, -k)[-k]
    return np.where(scores < smallest_kept, np.float32(-np.inf), scores)


def keep_top_p(scores: F32, p: float) -> F32:
    """Keep the smallest set of most likely tokens whose probabilities sum to at least ``p``; the others become -inf."""
    if p == 1:
        return scores
    probabilities = softmax(scores)
    likely = np.flatnonzero(
        probabilities >= (1 - p) / scores.size
    )  # the others sum to less than 1 - p: no need to sort them
    order = likely[np.argsort(-scores[likely], kind="stable")]
    kept = int(probabilities[order].cumsum().searchsorted(p)) + 1
    result = np.full_like(scores, -np.inf)
    result[order[:kept]] = scores[order[:kept]]
    return result


def softmax(scores: F32) -> npt.NDArray[np.float64]:
    """Probabilities, float64, same shape; -inf gives 0."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(weights / weights.sum(), np.float64)
