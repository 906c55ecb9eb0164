"""How likely a model finds given tokens: the basis of perplexity and of multiple-choice tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.engine.decoder import F32, PREFILL_CHUNK, Decoder
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.errors import OptionError

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenScores:
    """Scores of a run of tokens.

    Attributes:
        log_probs: float64 [tokens], natural logarithm of the probability of each token given all before it.
        greedy: bool [tokens], whether each was the most likely one.
    """

    log_probs: F64
    greedy: Bools


def score_tokens(decoder: Decoder, ids: Sequence[int], first: int = 1, cache: KVCache | None = None) -> TokenScores:
    """Score the tokens of a text from position ``first`` on.

    Logits are looked at a chunk at a time, so memory does not grow with the text. The last token is never run: nothing is
    asked of what would follow it, so a text of one token more than the context fits.

    Args:
        decoder: the model.
        ids: token ids of the text, special tokens included.
        first: the first position to score, at least 1: the first token of a text has nothing that predicts it.
        cache: its beginning that equals that of ``ids`` is used, the rest forgotten; default: a new one.

    Raises:
        ContextError: if the text does not fit.
        OptionError: if ``first`` is out of range, or a token is not in the vocabulary.
    """
    if not 1 <= first < len(ids):
        raise OptionError(f"first: expected 1 to {len(ids) - 1} for a text of {len(ids)} tokens, got {first}")
    decoder.check_tokens(ids[-1:])
    if cache is None:
        cache = decoder.new_cache(len(ids) - 1)
    start = cache.keep_prefix(ids[: first - 1])
    log_probs = np.empty(len(ids) - first)
    greedy = np.empty(len(ids) - first, np.bool_)
    for begin in range(start, len(ids) - 1, PREFILL_CHUNK):
        end = min(begin + PREFILL_CHUNK, len(ids) - 1)
        wanted = slice(max(begin, first - 1), end)  # positions whose logits predict a scored token
        rows = decoder.all_logits(ids[begin:end], cache, last=max(1, end - wanted.start))
        if wanted.start >= end:
            continue
        following = np.asarray(ids[wanted.start + 1 : end + 1])
        place = slice(wanted.start + 1 - first, end + 1 - first)
        log_probs[place] = token_log_probs(rows, following)
        greedy[place] = rows.argmax(axis=-1) == following
    return TokenScores(log_probs, greedy)


def token_log_probs(logits: F32, following: npt.NDArray[np.integer]) -> F64:
    """Log-probability, float64 [rows], of one token per row of logits [rows, vocab]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(shifted, np.asarray(following)[:, None], axis=-1)[:, 0]
    return np.asarray(picked - np.log(np.exp(shifted).sum(axis=-1)))
