"""Perplexity of a text, by two protocols that are stated with every result because their numbers cannot be compared.

``sliding``: the text is one stream of tokens. Every window begins with what the tokenizer puts before a text (usually a
beginning-of-text token) and holds as much context as fits; every token is scored once.

``reference``: how the published Fairy2i numbers were made. The text is cut into documents, each gets an end-of-text token,
and whole documents are packed greedily into windows that begin with the beginning-of-text token. What follows an end-of-text
token is not scored but counted in the denominator, which makes the number a little smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.errors import Fairy2iRuntimeError, OptionError
from fairy2i_runtime.measure.scoring import F64, Bools, score_tokens
from fairy2i_runtime.model import Model
from fairy2i_runtime.text.tokenizer import Tokenizer, text_frame

Protocol = Literal["sliding", "reference"]
PROTOCOLS: tuple[Protocol, ...] = ("sliding", "reference")
REFERENCE_WINDOW = 2048  # of the published evaluation
Scorer = Callable[[Sequence[int]], F64]  # token ids [length] -> log-probabilities [length - 1] of all but the first


class NothingToScore(OptionError):
    """A protocol finds nothing to score in the text; another may."""


@dataclass(frozen=True)
class Window:
    """A stretch of text to run in one go.

    Attributes:
        ids: token ids.
        scored: bool [len(ids) - 1], which of the tokens from the second on are scored.
    """

    ids: list[int]
    scored: Bools


@dataclass(frozen=True)
class Windows:
    """A text, cut up by a protocol.

    Attributes:
        protocol: which one.
        statement: the protocol in one sentence, with its numbers.
        windows: the stretches to run.
        window: the most tokens of one.
        stride: tokens scored per window; None where the protocol has none.
        tokens: tokens of the text that are used.
        text_bytes: UTF-8 bytes of the text if every token of it is scored, else None.
        denominator: by what the sum of losses is divided.
        dropped_documents: documents too long for a window (protocol ``reference``).
    """

    protocol: Protocol
    statement: str
    windows: list[Window]
    window: int
    stride: int | None
    tokens: int
    text_bytes: int | None
    denominator: int
    dropped_documents: int = 0

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return sum(int(window.scored.sum()) for window in self.windows)


@dataclass(frozen=True)
class Perplexity:
    """The result of one protocol.

    Attributes:
        windows: how the text was cut.
        log_probs: float64 [scored tokens], in the order of the text.
        seconds: how long it took.
    """

    windows: Windows
    log_probs: F64
    seconds: float

    @property
    def loss(self) -> float:
        """Sum of losses over the protocol's denominator, nats per token."""
        return float(-self.log_probs.sum()) / self.windows.denominator

    @property
    def perplexity(self) -> float:
        """exp(loss): the protocol's number."""
        return float(np.exp(self.loss))

    @property
    def loss_error(self) -> float:
        """Standard error of the loss over the scored tokens, taken as independent (they are not quite)."""
        if len(self.log_probs) < 2:
            return 0.0
        return float(self.log_probs.std(ddof=1) / np.sqrt(len(self.log_probs)))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte, independent of the tokenizer; None where not every token of the text is scored."""
        size = self.windows.text_bytes
        return float(-self.log_probs.sum() / np.log(2) / size) if size else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cut = self.windows
        return {
            "protocol": cut.protocol,
            "statement": cut.statement,
            "window": cut.window,
            "stride": cut.stride,
            "windows": len(cut.windows),
            "tokens": cut.tokens,
            "scored_tokens": len(self.log_probs),
            "denominator": cut.denominator,
            "dropped_documents": cut.dropped_documents,
            "loss": self.loss,
            "loss_standard_error": self.loss_error,
            "perplexity": self.perplexity,
            "perplexity_of_scored_tokens": float(np.exp(-self.log_probs.mean())),
            "bits_per_byte": self.bits_per_byte,
            "seconds": self.seconds,
        }


def sliding_windows(
    tokenizer: Tokenizer, text: str, window: int, stride: int | None = None, tokens: int | None = None
) -> Windows:
    """Cut a text for the protocol ``sliding``.

    Args:
        tokenizer: of the model.
        text: the text.
        window: the most tokens to run together.
        stride: tokens scored by every window but the first, which scores all of its own; default: half the window.
        tokens: use at most this many tokens of the text.

    Raises:
        OptionError: if a number is out of range.
        NothingToScore: if the text has fewer than two tokens.
    """
    prefix = text_prefix(tokenizer)
    all_ids = tokenizer.encode(text, add_special_tokens=False)
    ids = all_ids[:tokens]
    body = window - len(prefix)
    largest = body if prefix else body - 1  # a window's first token has nothing that predicts it
    stride = max(1, window // 2) if stride is None else stride
    if largest < 1:
        raise OptionError(f"window: expected at least {len(prefix) + (1 if prefix else 2)} tokens, got {window}")
    if not 1 <= stride <= largest:
        raise OptionError(f"stride: expected 1 to {largest} for a window of {window} tokens, got {stride}")
    if len(ids) < 2:
        raise NothingToScore(f"text: expected at least 2 tokens, found {len(ids)}")
    windows, done = [], 0
    while done < len(ids):
        end = min(body if done == 0 else done + stride, len(ids))
        stretch = prefix + ids[max(0, end - body) : end]
        scored = np.zeros(len(stretch) - 1, np.bool_)
        scored[-min(end - done, len(scored)) :] = True
        windows.append(Window(stretch, scored))
        done = end
    statement = (
        f"one stream; windows of {window} tokens{', each begun with ' + repr(prefix) if prefix else ''}; "
        f"after the first, each scores its last {stride}; exp(mean loss of all scored tokens)"
    )
    whole = len(ids) == len(all_ids) and bool(prefix)
    count = sum(int(item.scored.sum()) for item in windows)
    size = len(text.encode("utf-8")) if whole else None
    return Windows("sliding", statement, windows, window, stride, len(ids), size, count)


def reference_windows(
    tokenizer: Tokenizer, text: str, window: int, separator: str = "\n", tokens: int | None = None, *, bos: bool = True
) -> Windows:
    """Cut a text for the protocol ``reference``, that of the method's published evaluation (eval_ppl.py).

    Args:
        tokenizer: of the model.
        text: the text.
        window: the most tokens of a window; the published one is 2,048.
        separator: what stands between documents; a newline for WikiText, as published. Empty documents are left out.
        tokens: use whole documents up to at most this many tokens, end-of-text tokens included.
        bos: begin windows with the beginning-of-text token, if there is one; iFairy's evaluation does not.

    Raises:
        OptionError: if the separator is empty.
        NothingToScore: if the tokenizer has no end-of-text token, or no document is left.
    """
    eos = tokenizer.eos_id
    if eos is None:
        raise NothingToScore(
            "protocol reference: the tokenizer names no end-of-text token (eos_token in tokenizer_config.json); "
            "use --protocol sliding"
        )
    if not separator:
        raise OptionError("separator: expected at least one character, got none")
    first = tokenizer.token_id(tokenizer.special_tokens.get("bos_token", "")) if bos else None
    begin = [] if first is None else [first]
    packed: list[list[int]] = []
    current, used, lengths = list(begin), 0, []
    for document in text.split(separator):
        if document == "":
            continue
        ids = [*tokenizer.encode(document, add_special_tokens=False), eos]
        lengths.append(len(ids))
        if len(ids) > window:
            continue
        if tokens is not None and used + len(ids) > tokens:
            break
        used += len(ids)
        # a document of exactly ``window`` tokens makes a window one longer, as in the published code: its last token is
        # predicted but never run, so it fits
        if len(current) + len(ids) > window:
            packed.append(current)
            current = list(begin)
        current += ids
    if 1 < len(current) <= window:
        packed.append(current)
    windows = []
    for ids in packed:
        if len(ids) < 2:
            continue  # nothing but the beginning, before a document of exactly ``window`` tokens: counts for nothing
        windows.append(Window(ids, np.asarray(ids[:-1]) != eos))
    if not windows:
        raise NothingToScore(f"protocol reference: {_no_document(lengths, window, separator, tokens)}")
    statement = (
        f"documents separated by {separator!r}, each ended with token {eos}, those longer than {window} tokens left out; "
        f"packed into windows of {window} tokens{f' begun with token {first}' if begin else ''}; tokens after {eos} not scored "
        "but counted; exp(sum of losses / all predictions)"
    )
    denominator = sum(len(item.scored) for item in windows)
    dropped = sum(length > window for length in lengths)
    return Windows("reference", statement, windows, window, None, used, None, denominator, dropped)


def _no_document(lengths: list[int], window: int, separator: str, tokens: int | None) -> str:
    """Why no document is left, by the lengths in tokens of those that were looked at, and what can be done about it."""
    if not lengths:
        return f"the text holds nothing but separators {separator!r}; give another text, or choose another --separator"
    shortest = min(lengths)
    if tokens is not None and tokens < shortest <= window:
        return f"the first document takes {shortest} tokens with its end-of-text token, more than --tokens {tokens}"
    return (
        f"no document that fits into a window of {window} tokens: {len(lengths)} found, separated by {separator!r}, the shortest "
        f"of {shortest} tokens; choose another --separator"
    )


def text_prefix(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text, usually a beginning-of-text token or nothing."""
    frame = text_frame(tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False))
    return frame[0] if frame else []


def model_scorer(model: Model) -> Scorer:
    """The scorer of a loaded model."""
    return lambda ids: score_tokens(model.decoder, ids).log_probs


def measure(windows: Windows, scorer: Scorer, done: Callable[[int], object] = lambda tokens: None) -> Perplexity:
    """Run all windows.

    Args:
        windows: from :func:`sliding_windows` or :func:`reference_windows`.
        scorer: the model.
        done: called after every window with the number of its tokens.

    Raises:
        Fairy2iRuntimeError: if a token's log-probability is not finite.
    """
    started = perf_counter()
    parts: list[npt.NDArray[np.float64]] = []
    for window in windows.windows:
        parts.append(scorer(window.ids)[window.scored])
        done(len(window.ids))
    log_probs = np.concatenate(parts)
    if not np.isfinite(log_probs).all():
        raise Fairy2iRuntimeError(
            "the model produced logits that are not finite (NaN or infinity); its weights are damaged, export the model again"
        )
    return Perplexity(windows, log_probs, perf_counter() - started)
