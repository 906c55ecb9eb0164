"""Whether a text speaks at all, by rules: empty, looping, off the language, or fine. Nothing is said of whether it is right.

The rules know nothing of a model. Their limits were set so that answers of a float model pass and those of plainly broken
ones do not.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable

CLASSES = ("fine", "empty", "looping", "off-language")
FEWEST_WORDS = {"arithmetic": 1}  # kind of question -> words of an answer that are enough; the others:
FEWEST = 3
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.S)
LOOP_WORDS = 20  # shorter texts have no room for a loop that trigrams tell
DISTINCT_TRIGRAMS = 0.6  # of a text's trigrams of words so many are different ones; of any half of it, at least
BLANK_CHARACTERS = 40
BLANK_SHARE = 0.5  # more is white space: one newline after the other
ZLIB_BYTES = 48
ZLIB_RATIO = 0.32
KNOWN_WORDS = 0.75
PAIR_GAIN = 0.1  # share of known pairs of words, less that of the same words in any order: what the order is worth
PAIR_WORDS = 12
_SHUFFLES = 20


def words_of(text: str) -> list[str]:
    """Words and numbers in lower case, without signs."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


class Judge:
    """Knows the words of some texts, and which stood side by side.

    Args:
        texts: in the language that is spoken.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.words: Counter[str] = Counter()
        self.pairs: set[tuple[str, str]] = set()
        for text in texts:
            found = words_of(text)
            self.words.update(found)
            self.pairs.update(itertools.pairwise(found))

    def verdict(self, text: str, kind: str = "") -> str:
        """One of CLASSES, the first that fits in the order looping, empty, off-language."""
        if is_looping(text):  # also one endless word
            return "looping"
        if len(words_of(text)) < FEWEST_WORDS.get(kind, FEWEST):
            return "empty"
        return "off-language" if self.is_off_language(text) else "fine"

    def is_off_language(self, text: str) -> bool:
        """Too many words that no text had, or an order of words as good as any other; code is left out."""
        known, gain = self.shares(text)
        return known < KNOWN_WORDS or gain < PAIR_GAIN

    def shares(self, text: str) -> tuple[float, float]:
        """Share of known words, and what their order adds to the share of known pairs; 1 where there are too few to tell."""
        words = [word for word in words_of(_CODE.sub(" ", text)) if not word.isdigit()]
        if len(words) < FEWEST:
            return 1.0, 1.0
        known = sum(word in self.words for word in words) / len(words)
        if len(words) < PAIR_WORDS:
            return known, 1.0
        draw = random.Random(0)
        shuffled = [self.known_pairs(draw.sample(words, len(words))) for _ in range(_SHUFFLES)]
        return known, self.known_pairs(words) - sum(shuffled) / _SHUFFLES

    def known_pairs(self, words: list[str]) -> float:
        """Share of pairs of neighbours that stood together in some text."""
        return sum(pair in self.pairs for pair in itertools.pairwise(words)) / (len(words) - 1)


def is_looping(text: str) -> bool:
    """Whether the text, or its second half, says the same over and over."""
    words = [word for word in words_of(text) if not word.isdigit()]  # the numbers of a list differ, whatever it repeats
    for part in (words, words[len(words) // 2 :]):
        if len(part) >= LOOP_WORDS and distinct_trigrams(part) < DISTINCT_TRIGRAMS:
            return True
    if len(text) >= BLANK_CHARACTERS and sum(map(str.isspace, text)) > BLANK_SHARE * len(text):
        return True
    raw = text.encode("utf-8")
    return any(
        len(part) >= ZLIB_BYTES and len(zlib.compress(part, 9)) < ZLIB_RATIO * len(part)
        for part in (raw, raw[len(raw) // 2 :])
    )


def distinct_trigrams(words: list[str]) -> float:
    """Share of different ones among all runs of three words."""
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams)
