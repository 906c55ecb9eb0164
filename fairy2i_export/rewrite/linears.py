"""What the passes know about one product with a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from fairy2i_export.codes.quantizer import Profile, Quantizer, RowMultiplier

Origin = Literal["quantized", "recovered", "trained"]


@dataclass(frozen=True)
class Recipe:
    """How the codes of a matrix are made.

    Attributes:
        origin: ``quantized``: the matrix is quantized. ``recovered``: it is a sum of stages, and its own codes are used.
            ``trained``: a quantizer in the graph made it from ``latent``, which is quantized the same way.
        stages: of the result.
        profile: numeric profile of the quantizer.
        row_multiplier: of the quantizer.
        quantizer: greedy or joint; of a recovered matrix nobody knows, greedy stands there.
        latent: the initializer to quantize instead of the matrix, for ``trained``.
        latent_transposed: whether that is stored [K, N].
    """

    origin: Origin
    stages: int
    profile: Profile
    row_multiplier: RowMultiplier
    quantizer: Quantizer
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
