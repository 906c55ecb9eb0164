"""Complex tensors that a checkpoint stores as two, real and imaginary part, and what they are called when they are one.

Everything behind the source knows the one tensor under the name that such a tensor has in other models; messages about it name
the two that are stored.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Two stored tensors of one shape that are read as one.

    Attributes:
        real: name of the real part.
        imag: name of the imaginary part.
        axis: along which the imaginary part follows the real one.
        conjugate: it is the matrix W [n, m] of a linear layer ``y = W conj(x)``, which has 2n outputs and 2m inputs.
    """

    real: str
    imag: str
    axis: int = 0
    conjugate: bool = False

    @property
    def parts(self) -> tuple[str, str]:
        return self.real, self.imag

    @property
    def is_matrix(self) -> bool:
        """Whether the parts are matrices; else they are vectors."""
        return self.conjugate or self.axis == 1

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.real} with {self.imag} {'below' if self.axis == 0 else 'beside'} it"


@dataclass(frozen=True)
class PairNames:
    """How one kind of pair is called.

    Attributes:
        stored: the stored tensors, ``{part}`` for real or imag, ``{layer}`` for the number of a layer.
        joined: the one tensor, ``{layer}`` likewise.
        axis: see :class:`Pair`.
        conjugate: see :class:`Pair`.
    """

    stored: str
    joined: str
    axis: int = 0
    conjugate: bool = False

    def pair(self, joined: str) -> Pair | None:
        """The pair that a joined tensor is made of; None if it is of another kind."""
        match = re.fullmatch(re.escape(self.joined).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)"), joined)
        if match is None:
            return None
        layer = match.groupdict().get("layer", "")
        real, imag = (self.stored.format(part=part, layer=layer) for part in ("real", "imag"))
        return Pair(real, imag, self.axis, self.conjugate)

    def joined_name(self, stored: str) -> str | None:
        """The joined tensor that a stored one is a part of; None if it is of another kind."""
        pattern = (
            re.escape(self.stored).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)").replace(r"\{part\}", "(?:real|imag)")
        )
        match = re.fullmatch(pattern, stored)
        return None if match is None else self.joined.format(layer=match.groupdict().get("layer", ""))


def pair_of(kinds: Collection[PairNames], joined: str) -> Pair | None:
    """The pair that a joined tensor is made of, whether it is stored or not; None if it is made of none."""
    return next((pair for kind in kinds if (pair := kind.pair(joined)) is not None), None)


def find_pairs(kinds: Collection[PairNames], stored: Collection[str]) -> dict[str, Pair]:
    """Joined name -> pair, for every tensor of which at least one part is among the names ``stored``."""
    joined = {name for tensor in stored for kind in kinds if (name := kind.joined_name(tensor)) is not None}
    pairs = {name: pair_of(kinds, name) for name in sorted(joined)}
    return {name: pair for name, pair in pairs.items() if pair is not None}
