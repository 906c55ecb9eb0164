"""Draft the next tokens by looking up how the text went on where it read the same before, and run them all at once.

A run of several tokens reads every weight once, so it costs less than as many runs of one token each. Drafts come from the text
itself: where its last tokens occurred before, what followed there may follow again, as in a summary, a correction or a program that
repeats names. A draft that is wrong costs its share of one run and nothing else: keys and values behind the tokens that were right
are forgotten. (Prompt look-up decoding, a form of speculative decoding without a second model.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.interruption import Interruption
from fairy2i_runtime.engine.kvcache import KVCache

MOST_DRAFTED = 32
_LENGTHS = (4, 3, 2)  # of what has to occur again, the longest first
_LONGEST_PAUSE = 16  # runs without a draft after many that were wrong


class Drafter:
    """Looks up how a text may go on, and how far to believe it."""

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        """Read a text.

        Args:
            tokens: the text so far.
            most: tokens to draft at most, at least 1.
        """
        self._most = most
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # what was read last -> where that ended
        self._length = min(2, most)
        self._pause = self._misses = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on. Where it ends now is no place to look up: it is found once there is something behind it."""
        for length in _LENGTHS:
            if length <= len(self._tokens):
                self._places[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Up to ``most`` tokens that may follow; none if nothing is known, or drafts were wrong of late."""
        if self._pause > 0:
            self._pause -= 1
            return []
        count = min(most, self._length)
        for length in _LENGTHS:
            place = self._places.get(tuple(self._tokens[-length:])) if length <= len(self._tokens) else None
            if place is not None:
                found = self._tokens[place:]
                return [found[i % len(found)] for i in range(count)]  # a text that repeats itself goes on doing so
        return []

    def judge(self, drafted: int, right: int) -> None:
        """Note how many tokens of a draft were right: the next one is longer or shorter, or has to wait."""
        if right:
            self._misses = 0
            self._length = min(2 * self._length, self._most) if right == drafted else min(right + 1, self._most)
        else:
            self._misses += 1
            self._pause = min(2 ** (self._misses - 1), _LONGEST_PAUSE)
            self._length = 1


class LookAhead:
    """Runs tokens of one text one after the other, ahead where drafts allow it.

    Attributes:
        drafted: tokens that were run ahead.
        accepted: those of them that were right.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, most: int, interruption: Interruption | None = None) -> None:
        """Begin behind what is in the cache.

        Args:
            decoder: the model.
            cache: the text so far.
            most: tokens to run ahead at most, 1 to MOST_DRAFTED.
            interruption: as for :meth:`Decoder.next_logits`.
        """
        self._decoder, self._cache, self._interruption = decoder, cache, interruption
        self._drafter = Drafter(cache.tokens, most)
        self._ahead: deque[tuple[int, F32]] = (
            deque()
        )  # tokens whose keys and values lie behind the cache's end, logits after each
        self._count = self._right = 0  # of the draft that is being judged
        self.drafted = self.accepted = 0

    def next_logits(self, token: int, most: int) -> F32:
        """Append ``token`` to the cache; logits of the one after it, float32 [vocab], as :meth:`Decoder.next_logits` gives them.

        Args:
            token: what comes next.
            most: how many further tokens can be of use, at least 0.

        Raises:
            ContextError: if it does not fit.
            Interrupted: if the interruption asks for it; the cache is as it was.
        """
        self._drafter.push(token)
        if self._ahead:
            expected, logits = self._ahead.popleft()
            if token == expected:
                self._cache.tokens.append(token)  # its keys and values are there
                self._right += 1
                self.accepted += 1
                return logits
            self._ahead.clear()
        if self._count:
            self._drafter.judge(self._count, self._right)
        draft = self._drafter.draft(max(0, min(most, self._cache.room - 1)))
        self._count = self._right = 0
        rows = self._decoder.all_logits([token, *draft], self._cache, interruption=self._interruption)
        self._cache.truncate(len(self._cache) - len(draft))
        self._ahead.extend(zip(draft, rows[1:], strict=True))
        self._count = len(draft)
        self.drafted += len(draft)
        first: F32 = rows[0]
        return first
