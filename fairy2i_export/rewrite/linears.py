"""What the passes know about one product with a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.choices import Profile, RowMultiplier
from fairy2i_export.codes.native import F32
from fairy2i_export.codes.recover.stage_sums import StageSums
from fairy2i_export.rewrite.values.constants import Constants

Origin = Literal["quantized", "recovered", "trained"]


@dataclass(frozen=True)
class Recipe:
    """How the codes of a matrix are made.

    Attributes:
        origin: ``quantized``: the matrix is quantized. ``recovered``: it is a sum of stages, and its own codes are used.
            ``trained``: a quantizer in the graph made it from ``latent``, which is quantized the same way.
        stages: of the result.
        row_multiplier: whether there is one.
        profile: numeric profile of the quantizer; None for a recovered matrix, of which nobody knows.
        quantizer: its name; likewise.
        sums: what was found out about a recovered matrix: its codes can be read off again.
        latent: the initializer to quantize instead of the matrix, for ``trained``.
        latent_transposed: whether that is stored [K, N].
    """

    origin: Origin
    stages: int
    row_multiplier: RowMultiplier
    profile: Profile | None = None
    quantizer: str | None = None
    sums: StageSums | None = None
    latent: ir.Value | None = None
    latent_transposed: bool = False


@dataclass
class Linear:
    """One node that multiplies by a matrix, and what the passes found out about it.

    Attributes:
        name: for reports: the module's name where the exporter recorded it, else the weight's, else the node's; unique.
        aliases: all names that --include and --exclude are compared with.
        node: the node.
        value: the operand that may be a constant matrix; None if no operand can be.
        transposed: whether ``value`` is stored [K, N] instead of [N, K].
        on_left: whether the matrix is the first operand of a MatMul.
        reason: why the node is left alone; empty while it is not.
        shape: (N, K) of the matrix once it is resolved.
        dtype: number format of the product.
        recipe: how its codes are made, once it is recognised.
        fused: names of the nodes that went into the operator besides the product itself.
    """

    name: str
    aliases: tuple[str, ...]
    node: ir.Node
    value: ir.Value | None
    transposed: bool = True
    on_left: bool = False
    reason: str = ""
    shape: tuple[int, int] | None = None
    dtype: ir.DataType | None = None
    recipe: Recipe | None = None
    fused: list[str] = field(default_factory=list)

    @property
    def operator(self) -> str:
        return self.node.op_type

    @property
    def alive(self) -> bool:
        return not self.reason

    @property
    def parameters(self) -> int:
        return 0 if self.shape is None else self.shape[0] * self.shape[1]


def matrix_of(linear: Linear, constants: Constants) -> npt.NDArray[np.generic]:
    """The matrix A [N, K] of a resolved layer, in its own number format.

    Raises:
        ModelError: if it cannot be read or computed.
    """
    if linear.value is None:
        raise AssertionError(f"{linear.name}: has no constant operand")
    array = constants.array(linear.value)
    return array.T if linear.transposed else array


def float_matrix(array: npt.NDArray[np.generic]) -> F32:
    """The same in float32, contiguous."""
    result: F32 = np.ascontiguousarray(array, dtype=np.float32)
    return result
