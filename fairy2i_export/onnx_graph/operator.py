"""The operator ``ai.fairy2i::Fairy2iMatMul`` as a node: its names, inputs and attributes, made and read here and nowhere else.

What it computes is the function body (function.py) and docs/format.md; what its bytes mean is codes/layout.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.layout import LAYOUT_VERSION, SCALE_SCOPE_MATRIX, PackedLinear
from fairy2i_export.errors import FormatError

DOMAIN = "ai.fairy2i"
OP_NAME = "Fairy2iMatMul"
OP_VERSION = 1
OPSET = 18  # of the standard operators in the function body: first with BitwiseAnd and OptionalHasElement of an absent input
FUNCTION_IR_VERSION = 8  # the first ONNX file format with model-local functions
INPUTS = ("X", "packed", "scales", "bias", "row_multiplier", "col_multiplier")
ATTRIBUTES = ("K", "N", "stages", "layout_version", "scale_scope")
ROUNDING = "activation_bits"  # an attribute that nodes of layout version 1 need not have: 0
_REQUIRED = 3  # of the inputs


@dataclass(frozen=True)
class Operands:
    """The inputs of a node besides X; None is absent."""

    packed: ir.Value
    scales: ir.Value
    bias: ir.Value | None = None
    row_multiplier: ir.Value | None = None
    col_multiplier: ir.Value | None = None

    def with_bias(self, bias: ir.Value) -> Operands:
        """The same with a bias."""
        return replace(self, bias=bias)


@dataclass(frozen=True)
class Node:
    """A node that was read: its name (the module's), operands, and the names of its input and output values."""

    name: str
    operands: PackedLinear
    bias: npt.NDArray[np.float32] | None
    x: str
    y: str


def is_operator(node: ir.Node) -> bool:
    """Whether a node is of this operator."""
    return node.domain == DOMAIN and node.op_type == OP_NAME


def layout_of(model: ir.Model) -> int:
    """The latest layout version among the nodes of a model, which is what it takes to read all of it."""
    layouts = [node.attributes["layout_version"].as_int() for node in model.graph.all_nodes() if is_operator(node)]
    return max(layouts, default=LAYOUT_VERSION)


def make_node(
    name: str,
    x: ir.Value | None,
    operands: Operands,
    output: ir.Value,
    *,
    k: int,
    n: int,
    stages: int,
    layout: int = LAYOUT_VERSION,
    activation_bits: int = 0,
) -> ir.Node:
    """A node that computes ``output`` [..., n] of ``x`` [..., k]; ``layout`` is that of the packed bytes.

    With ``activation_bits``, which only layers without U may have, it rounds ``x`` first. It names all six inputs, absent
    ones with an empty name.
    """
    inputs = [x, *(getattr(operands, key) for key in INPUTS[1:])]
    attributes = {"K": k, "N": n, "stages": stages, "layout_version": layout, "scale_scope": SCALE_SCOPE_MATRIX}
    if layout != LAYOUT_VERSION:
        attributes[ROUNDING] = activation_bits
    return ir.node(OP_NAME, inputs, attributes=attributes, domain=DOMAIN, outputs=[output], name=name)


def complete_attributes(node: ir.Node) -> None:
    """Give a node the attribute that the function body of a model with layers without U demands of all nodes."""
    if ROUNDING not in node.attributes:
        node.attributes[ROUNDING] = ir.AttrInt64(ROUNDING, 0)


def complete_inputs(node: ir.Node) -> bool:
    """Name all inputs of a node; False if they were.

    Exporters leave out trailing optional inputs, and the reference evaluator of ONNX wants all.
    """
    if len(node.inputs) >= len(INPUTS):
        return False
    node.resize_inputs(len(INPUTS))
    return True


def read_node(node: ir.Node) -> Node:
    """The operands and attributes of a node; weights stay mapped.

    Raises:
        FormatError: an operand or an attribute is missing, or an operand is no initializer.
    """
    name = node.name or "(unnamed)"

    def operand(index: int) -> Any:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None and index >= _REQUIRED:
            return None
        if value is None or value.const_value is None:
            raise FormatError(f"node {name}: expected {INPUTS[index]} to be an initializer")
        return value.const_value.numpy()

    def attribute(key: str) -> int:
        if key not in node.attributes:
            raise FormatError(f"node {name}: expected an attribute {key}")
        return int(node.attributes[key].as_int())

    tensors = {key: operand(index) for index, key in enumerate(INPUTS) if index > 0}
    numbers = {key: attribute(key) for key in ATTRIBUTES}
    old = numbers["layout_version"] == LAYOUT_VERSION and ROUNDING not in node.attributes
    packed = PackedLinear(
        packed=tensors["packed"],
        scales=tensors["scales"],
        n=numbers["N"] // 2,
        m=numbers["K"] // 2,
        stages=numbers["stages"],
        row_multiplier=tensors["row_multiplier"],
        col_multiplier=tensors["col_multiplier"],
        layout_version=numbers["layout_version"],
        scale_scope=numbers["scale_scope"],
        activation_bits=0 if old else attribute(ROUNDING),
    )
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.name is None or y.name is None:
        raise FormatError(f"node {name}: expected a named input X and output Y")
    return Node(name, packed, tensors["bias"], x.name, y.name)
