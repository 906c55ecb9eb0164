"""Questions with one right answer, made of a text without chance: the same text gives the same items.

Two kinds. ``continuation``: which of four passages goes on from here? The wrong three are what goes on elsewhere in the
text, from the nearest places, so that names and subject give little away. ``last word``: the last word of a sentence, given
the sentence and what stands before it; only words that occurred before, as in LAMBADA (Paperno et al., arXiv 1606.06031),
and no common ones.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

CONTEXT_WORDS = 40  # before a continuation
CONTINUATION_WORDS = 14
CHOICES = 4
PASSAGE_WORDS = 60  # before a last word, the sentence included
SHORTEST_WORD = 4
COMMON = 120  # words that are too common to be asked for

_SENTENCE = re.compile(r"\s?[.!?][\"”’']?\s")


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        context: what the model reads.
        choices: what may follow, each with the space before it; one for a last word.
        answer: index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


def continuations(text: str, count: int) -> list[Item]:
    """Items with four continuations each, evenly spread over a text; the right one's place is drawn from a fixed seed.

    Raises:
        ValueError: too short a text for two items and their wrong answers.
    """
    words = text.split()
    length = CONTEXT_WORDS + CONTINUATION_WORDS
    passages = min(count, len(words) // length)
    if passages < CHOICES:
        raise ValueError(f"expected at least {CHOICES * length} words, found {len(words)}")
    starts = np.linspace(0, len(words) - length, passages).astype(int)
    following = [" " + " ".join(words[start + CONTEXT_WORDS : start + length]) for start in starts]
    random = np.random.default_rng(0)
    items = []
    for number, start in enumerate(starts):
        near = sorted(
            (other for other in range(passages) if other != number), key=lambda other: (abs(other - number), other)
        )
        choices = [following[other] for other in near if following[other] != following[number]][: CHOICES - 1]
        place = int(random.integers(CHOICES))
        choices.insert(place, following[number])
        items.append(Item(" ".join(words[start : start + CONTEXT_WORDS]), tuple(choices), place))
    return items


def last_words(text: str, count: int) -> list[Item]:
    """Items that ask for the last word of a sentence, evenly spread over a text; fewer if it has not so many."""
    flat = " ".join(text.split())
    common = {word for word, _ in Counter(re.findall(r"[a-z']+", flat.lower())).most_common(COMMON)}
    found = []
    for end in _SENTENCE.finditer(flat):
        before = flat[: end.start()][-8 * PASSAGE_WORDS :].split(" ")[1:][-PASSAGE_WORDS:]  # its first word may be cut
        if len(before) < PASSAGE_WORDS or not re.fullmatch(rf"[A-Za-z]{{{SHORTEST_WORD},}}", before[-1]):
            continue
        word = before[-1]
        earlier = {part.strip(".,;:!?\"'()“”‘’") for part in before[:-1]}
        if word in earlier and word.lower() not in common:
            found.append(Item(" ".join(before[:-1]), (" " + word,), 0))
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[index] for index in chosen]
