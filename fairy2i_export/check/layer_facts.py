"""What one layer of an exported model holds, as data. Nothing is executed, and weights are looked at one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.layout import LAYOUT_CONJUGATE, unpack
from fairy2i_export.errors import FormatError
from fairy2i_export.onnx_graph.operator import Node

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerFacts:
    """One Fairy2iMatMul node.

    Attributes:
        name: the module's name.
        shape: (N, K), output and input features.
        stages: residual stages.
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        code_counts: int64 [stages, 2 (U, W), 4]: how often each code k (for i^k) occurs, padding not counted; zeros for a U that
            is not there.
        activation_bits: that the layer rounds the halves of its input to; 0: it does not.
        conjugate: there is W alone (layout version 2), and what counts as a weight is complex.
        row_multiplier: (smallest, mean, largest), or None.
        col_multiplier: as row_multiplier.
        bias: whether there is one.
        stored_bytes: packed codes with padding, scales, multipliers.
    """

    name: str
    shape: tuple[int, int]
    stages: int
    scales: npt.NDArray[np.float32]
    code_counts: I64
    row_multiplier: tuple[float, float, float] | None
    col_multiplier: tuple[float, float, float] | None
    bias: bool
    stored_bytes: int
    conjugate: bool = False
    activation_bits: int = 0

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1] // (4 if self.conjugate else 1)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / self.parameters

    @property
    def stage_scales(self) -> npt.NDArray[np.float64]:
        """Root mean square of the scales of each stage, float64 [stages]."""
        return np.asarray(np.sqrt(np.square(self.scales, dtype=np.float64).mean(axis=(1, 2))))

    @property
    def entropy(self) -> npt.NDArray[np.float64]:
        """Bits that a code carries, float64 [stages, 2]: 2 if all four are equally frequent; 0 where there are none."""
        share = self.code_counts / np.maximum(self.code_counts.sum(axis=-1, keepdims=True), 1)
        return np.asarray(-(share * np.log2(np.maximum(share, 1e-300))).sum(axis=-1))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "stages": self.stages,
            "scales": self.scales.tolist(),
            "code_counts": self.code_counts.tolist(),
            "row_multiplier": _named(self.row_multiplier),
            "col_multiplier": _named(self.col_multiplier),
            "bias": self.bias,
            "activation_bits": self.activation_bits,
            "bits_per_weight": self.bits_per_weight,
            "bytes": self.stored_bytes,
        }


def layer_facts(nodes: list[Node], done: Callable[[], None] = lambda: None) -> Iterator[LayerFacts]:
    """Facts of every node, one layer unpacked at a time.

    Raises:
        FormatError: if operands contradict the format.
    """
    for node in nodes:
        p = node.operands
        try:
            q = unpack(p)
        except FormatError as error:
            raise FormatError(f"node {node.name}: {error}") from error
        conjugate = p.layout_version == LAYOUT_CONJUGATE
        counts = np.zeros((p.stages, 2, 4), np.int64)
        for place in np.ndindex(p.stages, 2):
            if conjugate and place[1] == 0:
                continue
            codes = q.codes[place]
            counts[place][1:] = [np.count_nonzero(codes == code) for code in (1, 2, 3)]
            counts[place][0] = codes.size - counts[place][1:].sum()
        operands = (p.packed, p.scales, p.row_multiplier, p.col_multiplier)
        yield LayerFacts(
            name=node.name,
            shape=(2 * p.n, 2 * p.m),
            stages=p.stages,
            scales=np.asarray(p.scales),
            code_counts=counts,
            row_multiplier=_range(p.row_multiplier),
            col_multiplier=_range(p.col_multiplier),
            bias=node.bias is not None,
            stored_bytes=sum(operand.nbytes for operand in operands if operand is not None),
            conjugate=conjugate,
            activation_bits=p.activation_bits,
        )
        done()


def _range(values: npt.NDArray[np.float32] | None) -> tuple[float, float, float] | None:
    return None if values is None else (float(values.min()), float(values.mean()), float(values.max()))


def _named(values: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if values is None else dict(zip(("min", "mean", "max"), values, strict=True))
