"""Random orthogonal matrices that are applied fast, and to the same bits on every machine.

Everything is elementwise additions and multiplications in float64, in a fixed order: no BLAS, whose sums depend on threads and
processors, and no generator of random numbers whose stream another version might change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rotation:
    """``diag(signs) kron(I, odd, H)``, with H the normalised Hadamard matrix of the largest power of two in a block's size.

    Attributes:
        signs: float64 [length], 1 or -1; whole blocks.
        odd: float64 [a, a], orthogonal; a is odd, a * 2^k the size of a block.
        power: 2^k.
    """

    signs: F64
    odd: F64
    power: int

    @property
    def size(self) -> int:
        """Of a block: values that are mixed."""
        return len(self.odd) * self.power

    def part(self, start: int, stop: int) -> Rotation:
        """Of whole blocks only, those of the values ``start`` to ``stop``."""
        return Rotation(self.signs[start:stop], self.odd, self.power)

    def apply(self, x: npt.NDArray[Any]) -> F64:
        """Rows ``x R``, float64 [rows, length], or one row [length]."""
        return self.apply_to_columns(x.T).T

    def apply_to_columns(self, x: npt.NDArray[Any]) -> F64:
        """``R^T x``, float64 [length, columns], or one column [length]."""
        a = len(self.odd)
        turned: F64 = np.multiply(x.reshape(len(x), -1), self.signs[:, None], order="C")
        half = 1
        while half < self.power:  # butterflies: values whose places differ in one bit
            pairs = turned.reshape(-1, 2, half, turned.shape[-1])
            turned = np.empty(pairs.shape)
            np.add(pairs[:, 0], pairs[:, 1], out=turned[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=turned[:, 1])
            half *= 2
        if a > 1:
            parts = turned.reshape(-1, a, 1, self.power, turned.shape[-1])
            turned = parts[:, 0] * self.odd[0][:, None, None]
            for index in range(1, a):
                turned += parts[:, index] * self.odd[index][:, None, None]
        turned *= self.power**-0.5
        return turned.reshape(x.shape)


def make_rotation(size: int, seed: str, signs: int = 1, repeats: int = 1) -> Rotation:
    """A random rotation of blocks.

    Args:
        size: of a block.
        seed: decides about everything random in it.
        signs: how many blocks with signs of their own there are.
        repeats: how often each stands, one behind the other.
    """
    power = size & -size
    chosen = _bits(f"{seed} signs", size * signs).reshape(signs, size)
    return Rotation(np.repeat(chosen, repeats, axis=0).reshape(-1), _orthogonal(size // power, f"{seed} odd"), power)


def _bits(seed: str, count: int) -> F64:
    """1 or -1."""
    drawn = np.frombuffer(hashlib.shake_256(seed.encode()).digest(-(-count // 8)), np.uint8)
    return np.asarray(1.0 - 2.0 * np.unpackbits(drawn)[:count], np.float64)


@cache
def _orthogonal(size: int, seed: str) -> F64:
    """A random orthogonal matrix [size, size]: Gram-Schmidt (twice, because once loses digits) on sums of four uniform values."""
    drawn = np.frombuffer(hashlib.shake_256(seed.encode()).digest(8 * size * size), "<u2").reshape(size, size, 4)
    rows = drawn.sum(axis=2, dtype=np.float64) - 2.0 * 65535
    for index, row in enumerate(rows):
        for _ in range(2):
            before = rows[:index]
            row -= (before * (before * row).sum(axis=1, keepdims=True)).sum(axis=0)
            row /= np.sqrt((row * row).sum())
    rows.setflags(write=False)
    return np.asarray(rows, np.float64)
