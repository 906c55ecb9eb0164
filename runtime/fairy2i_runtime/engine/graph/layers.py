"""What nodes of our own operators may be given: linear layers, one, or two or three that read the same activation."""

from __future__ import annotations

from functools import partial
from typing import Any

from fairy2i_runtime.engine.graph.call import Activation, Call
from fairy2i_runtime.engine.graph.model_file import FLOAT, UINT8

DOMAIN = "ai.fairy2i"
OPERATORS = {"Fairy2iMatMul": 1, "Fairy2iMatMul2": 2, "Fairy2iMatMul3": 3}  # layers of a node
_MOST = 1 << 31  # of N and K
_OPERANDS = 5  # of a layer: codes, scales, bias, multipliers of rows and of columns


def _rule(layers: int, c: Call) -> list[Any]:
    """Check a node of so many layers; gives their outputs."""
    inputs = 1 + layers * _OPERANDS
    c.count(3 if layers == 1 else inputs, inputs)
    k, layout = c.take("K", 2, _MOST), c.take("layout_version", 1, 2)
    bits = c.take("activation_bits", 0, 8, 0 if layout == 1 else None)
    c.need(bits == 0 or (bits == 8 and layout == 2), f"activation_bits 0, or 8 with layout_version 2, found {bits}")
    c.take("scale_scope", 0, 0)
    c.activation(0, k)
    c.need(layers == 1 or len(list(filter(None, c.outputs))) == layers, f"{layers} outputs, found {c.outputs}")
    return [_layer(c, 1 + layer * _OPERANDS, k, "" if layers == 1 else f"_{layer}") for layer in range(layers)]


def _layer(c: Call, first: int, k: int, number: str) -> Activation:
    """Check one layer, whose operands begin at an input and whose attributes end with a number."""
    n, stages = c.take(f"N{number}", 2, _MOST), c.take(f"stages{number}", 1, 64)
    c.tensor(first, UINT8, None)
    c.tensor(first + 1, FLOAT, stages, 2, 2)
    for index, size in enumerate((n, n, k), first + 2):
        if c.operands[index] is not None:
            c.tensor(index, FLOAT, size)
    return Activation(FLOAT, (n,))


RULES = {(DOMAIN, name): partial(_rule, layers) for name, layers in OPERATORS.items()}
