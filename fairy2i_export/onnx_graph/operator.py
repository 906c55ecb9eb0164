"""The operators ``ai.fairy2i::Fairy2iMatMul``, ``...2`` and ``...3`` as nodes: made and read here and nowhere else.

A node of Fairy2iMatMul is one linear layer; one of Fairy2iMatMul2 or 3 is as many layers that read the same X, each with operands,
N, stages and an output of its own, under the names that Fairy2iMatMul has for them and the layer's number: ``packed_0``, ``N_1``.
What they compute is the function bodies (function.py) and docs/format.md; what their bytes mean is codes/layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
MAX_LAYERS = 3  # of a node
OP_NAMES = (OP_NAME, *(f"{OP_NAME}{layers}" for layers in range(2, MAX_LAYERS + 1)))  # of 1, 2 and 3 layers
_OWN = ("N", "stages")  # attributes that every layer of a node has for itself
_REQUIRED = ("packed", "scales")
_PACKED = ".packed"  # ends the name of the initializer with a layer's codes, after the module's


@dataclass(frozen=True)
class Operands:
    """The inputs of a layer besides X; None is absent."""

    packed: ir.Value
    scales: ir.Value
    bias: ir.Value | None = None
    row_multiplier: ir.Value | None = None
    col_multiplier: ir.Value | None = None

    def with_bias(self, bias: ir.Value) -> Operands:
        """The same with a bias."""
        return replace(self, bias=bias)


@dataclass(frozen=True)
class Layer:
    """A layer that a node is made of: the module's name, operands, output [..., n] and how many stages it has."""

    name: str
    operands: Operands
    output: ir.Value
    n: int
    stages: int


@dataclass(frozen=True)
class Node:
    """A layer that was read, which is a node or a part of one: the module's name, operands, names of input and output values."""

    name: str
    operands: PackedLinear
    bias: npt.NDArray[np.float32] | None
    x: str
    y: str


def is_operator(node: ir.Node) -> bool:
    """Whether a node is of one of these operators."""
    return node.domain == DOMAIN and node.op_type in OP_NAMES


def layers_in(node: ir.Node) -> int:
    """Layers of a node of these operators."""
    return OP_NAMES.index(node.op_type) + 1


def input_names(layers: int) -> tuple[str, ...]:
    """Names of the inputs of the operator of so many layers."""
    return (INPUTS[0], *(name_of(key, layer, layers) for layer in range(layers) for key in INPUTS[1:]))


def attribute_names(layers: int) -> tuple[str, ...]:
    """Names of its attributes, but for ``activation_bits``."""
    if layers == 1:
        return ATTRIBUTES
    common = (key for key in ATTRIBUTES if key not in _OWN)
    return (*common, *(name_of(key, layer, layers) for layer in range(layers) for key in _OWN))


def name_of(key: str, layer: int, layers: int) -> str:
    """What an operand, an output or an attribute of a layer is called in the operator of so many layers."""
    return key if layers == 1 or (key in ATTRIBUTES and key not in _OWN) or key == ROUNDING else f"{key}_{layer}"


def operand_of(index: int) -> str:
    """What the input at an index is, whichever layer's: one of ``INPUTS``."""
    return INPUTS[1 + (index - 1) % (len(INPUTS) - 1)] if index else INPUTS[0]


def layer_names(node: ir.Node) -> list[str]:
    """The modules that a node stands for: its own name or, of several layers, those that the initializers with codes have."""
    layers = layers_in(node)
    if layers == 1:
        return [node.name or ""]
    codes = (_input(node, name_of("packed", layer, layers)) for layer in range(layers))
    names = [value.name if value is not None else None for value in codes]
    return [(name or f"{node.name}#{layer}").removesuffix(_PACKED) for layer, name in enumerate(names)]


def shapes_of(node: ir.Node) -> Iterator[tuple[str, list[int | None]]]:
    """Name and [N, K] of every layer; None for a number that is not there."""
    layers = layers_in(node)
    for layer, name in enumerate(layer_names(node)):
        found = [node.attributes.get(name_of(key, layer, layers)) for key in ("N", "K")]
        yield name, [None if number is None else int(number.as_int()) for number in found]


def layout_of(model: ir.Model) -> int:
    """The latest layout version among the nodes of a model, which is what it takes to read all of it."""
    layouts = [node.attributes["layout_version"].as_int() for node in model.graph.all_nodes() if is_operator(node)]
    return max(layouts, default=LAYOUT_VERSION)


def make_node(
    layers: Sequence[Layer], x: ir.Value | None, *, k: int, layout: int = LAYOUT_VERSION, activation_bits: int = 0
) -> ir.Node:
    """A node that computes the outputs of one to three layers of ``x`` [..., k]; ``layout`` is that of all packed bytes.

    With ``activation_bits``, which only layers without U may have, it rounds ``x`` first. It names all inputs, absent
    ones with an empty name.
    """
    count = len(layers)
    attributes = {"K": k, "layout_version": layout, "scale_scope": SCALE_SCOPE_MATRIX}
    for number, layer in enumerate(layers):
        attributes |= {name_of("N", number, count): layer.n, name_of("stages", number, count): layer.stages}
    if layout != LAYOUT_VERSION:
        attributes[ROUNDING] = activation_bits
    inputs = [x, *(getattr(layer.operands, key) for layer in layers for key in INPUTS[1:])]
    ordered = {key: attributes[key] for key in (*attribute_names(count), ROUNDING) if key in attributes}
    outputs = [layer.output for layer in layers]
    name = _joined([layer.name for layer in layers])
    return ir.node(OP_NAMES[count - 1], inputs, attributes=ordered, domain=DOMAIN, outputs=outputs, name=name)


def _joined(modules: list[str]) -> str:
    """``a.b.q_proj+k_proj`` of ``a.b.q_proj`` and ``a.b.k_proj``: what they begin with is there once."""
    parent = modules[0].rpartition(".")[0]
    same = parent and all(module.rpartition(".")[0] == parent for module in modules)
    return "+".join([modules[0], *(module.rpartition(".")[2] if same else module for module in modules[1:])])


def complete_attributes(node: ir.Node) -> None:
    """Give a node the attribute that the function body of a model with layers without U demands of all nodes."""
    if ROUNDING not in node.attributes:
        node.attributes[ROUNDING] = ir.AttrInt64(ROUNDING, 0)


def complete_inputs(node: ir.Node) -> bool:
    """Name all inputs of a node; False if they were.

    Exporters leave out trailing optional inputs, and the reference evaluator of ONNX wants all.
    """
    wanted = len(input_names(layers_in(node)))
    if len(node.inputs) >= wanted:
        return False
    node.resize_inputs(wanted)
    return True


def read_node(node: ir.Node) -> list[Node]:
    """Operands and attributes of the layers of a node; weights stay mapped.

    Raises:
        FormatError: an operand, an attribute or an output is missing, or an operand is no initializer.
    """
    layers, outputs = layers_in(node), [value.name for value in node.outputs]
    if len(outputs) != layers or not all(outputs) or not node.inputs or node.inputs[0] is None or not node.inputs[0].name:
        expected = "input X and output Y" if layers == 1 else f"input X and {layers} named outputs"
        raise FormatError(f"node {node.name or '(unnamed)'}: expected a named {expected}, found outputs {outputs}")
    return [_read_layer(node, number, name) for number, name in enumerate(layer_names(node))]


def _input(node: ir.Node, name: str) -> ir.Value | None:
    index = input_names(layers_in(node)).index(name)
    return node.inputs[index] if index < len(node.inputs) else None


def _read_layer(node: ir.Node, number: int, module: str) -> Node:
    name, layers = node.name or "(unnamed)", layers_in(node)

    def operand(key: str) -> Any:
        called = name_of(key, number, layers)
        value = _input(node, called)
        if value is None and key not in _REQUIRED:
            return None
        if value is None or value.const_value is None:
            raise FormatError(f"node {name}: expected {called} to be an initializer")
        return value.const_value.numpy()

    def attribute(key: str) -> int:
        called = name_of(key, number, layers)
        if called not in node.attributes:
            raise FormatError(f"node {name}: expected an attribute {called}")
        return int(node.attributes[called].as_int())

    tensors = {key: operand(key) for key in INPUTS[1:]}
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
    x = node.inputs[0]
    return Node(module or name, packed, tensors["bias"], str(x.name if x else ""), str(node.outputs[number].name))
