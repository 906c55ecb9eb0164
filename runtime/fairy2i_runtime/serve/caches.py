"""Key-value caches of answers that have ended, kept for the request that goes on from there.

A request carries the whole conversation. If its tokens begin like those of a kept cache, only what is new is run. A cache
belongs to one answer at a time: it is taken out, and given back when that answer has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.engine.kvcache import KVCache


@dataclass
class Kept:
    """A cache, and what deciding about it takes.

    Attributes:
        cache: keys and values.
        prompt: tokens of the request that it was last used for.
        most: the most tokens it ever held: memory that was touched stays taken. 0 = it is new.
    """

    cache: KVCache
    prompt: int = 0
    most: int = 0


class KeptCaches:
    """At most so many caches and bytes; the one that was not used for longest goes first. For one thread."""

    def __init__(self, decoder: Decoder, most: int, most_bytes: int) -> None:
        self._decoder, self._most, self._most_bytes = decoder, most, most_bytes
        self._kept: list[Kept] = []  # the one used last is last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory of the kept caches."""
        return sum(map(self._bytes, self._kept))

    def take(self, ids: Sequence[int]) -> Kept:
        """The cache that shares most tokens with a prompt, out of the kept ones, or a new one.

        One of which less than half of its own prompt would be used belongs to another conversation, and stays.
        """
        shared = [(_same(kept.cache.tokens, ids), place) for place, kept in enumerate(self._kept)]
        same, place = max(shared, default=(0, -1))
        if same and 2 * same >= self._kept[place].prompt:
            found = self._kept.pop(place)
        else:
            found = Kept(self._decoder.new_cache())
        found.prompt = len(ids)
        return found

    def give_back(self, kept: Kept) -> None:
        """Keep a cache whose answer has ended, as far as the limits allow."""
        kept.most = max(kept.most, len(kept.cache))
        if len(kept.cache):
            self._kept.append(kept)
        while self._kept and (len(self._kept) > self._most or self.bytes > self._most_bytes):
            del self._kept[0]

    def _bytes(self, kept: Kept) -> int:
        return self._decoder.cache_shape.size_bytes(kept.most)


def _same(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
