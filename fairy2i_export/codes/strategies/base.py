"""What a quantizer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from fairy2i_export.codes.native import F32, F64, LatentMatrix, Rows
from fairy2i_export.codes.profiles import Rounding

Check = Callable[[F64], None]  # gets sums over rows, which are not finite where a weight is not
# matrix, rounding of the profile, threads, check, how to share the rows (None: as is best) -> scales float32 [stages, 2, 2]
FindScales = Callable[[LatentMatrix, Rounding, Executor | None, Check, Sequence[Rows] | None], F32]


@dataclass(frozen=True)
class Strategy:
    """One way to choose the codes and scales of a matrix.

    Attributes:
        name: for ``--quantizer``, config.json and metadata.
        about: in a few words, for people who choose.
        scales: finds them; afterwards the matrix gives the codes that belong to them.
        jointly: codes of all stages are chosen together, the nearest of the 4^stages points, also for scales that are given.
        stagewise: the first stages alone approximate the matrix too.
        searches: finding scales takes many passes over the matrix.
        in_torch: how train/qat/torch_quantizer.py states it too: wholly, or for scales that are given; otherwise matrices go
            through main memory to the C library.
    """

    name: str
    about: str
    scales: FindScales
    jointly: bool
    stagewise: bool
    searches: bool
    in_torch: Literal["no", "given", "wholly"] = "no"

    def is_in_torch(self, given: bool) -> bool:
        """Whether torch_quantizer.py can do it, with scales that are given or without."""
        return self.in_torch == "wholly" or (given and self.in_torch == "given")

    def choose(self, matrix: LatentMatrix) -> None:
        """From now on the matrix gives codes as this quantizer chooses them for scales that are given."""
        if self.jointly:
            matrix.choose_jointly()
