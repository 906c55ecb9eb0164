"""The new nodes of one layer: made by its pattern, put in at once.

bfloat16 products get a Cast to float32 before and one back after: the operator has no bfloat16 form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.native import F32
from fairy2i_export.errors import ModelError
from fairy2i_export.onnx_graph.operator import Layer, make_node
from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.names import Names
from fairy2i_export.rewrite.operands import PackedWeights
from fairy2i_export.rewrite.removal import Removal
from fairy2i_export.rewrite.values.constants import STANDARD, Constants
from fairy2i_export.rewrite.values.ranks import rank_of


@dataclass
class Replacements:
    """What the replacements of all layers share.

    Attributes:
        constants: of the model.
        weights: makes the operands.
        names: for new values.
        orphans: inputs of the nodes that were taken out: what the prune pass looks at.
        fused: how many biases went into the operator.
        removal: of the nodes that were replaced.
    """

    constants: Constants
    weights: PackedWeights
    names: Names
    orphans: list[ir.Value]
    fused: int = 0
    removal: Removal = field(default_factory=Removal)


class Replacement:
    """The new nodes of one layer, collected and then put in at once.

    Attributes:
        linear: the layer.
        node: its node.
        dtype: number format of the product.
    """

    def __init__(self, shared: Replacements, linear: Linear) -> None:
        if linear.shape is None or linear.dtype is None or linear.recipe is None:
            raise AssertionError(f"{linear.name}: not recognised")
        self.linear, self.node, self.dtype = linear, linear.node, linear.dtype
        self._shared = shared
        self._n, self._k = linear.shape
        self._stages = linear.recipe.stages
        self._nodes: list[ir.Node] = []

    @property
    def storage(self) -> type[np.floating[Any]]:
        """The type of new constants beside the product."""
        return np.float16 if self.dtype == ir.DataType.FLOAT16 else np.float32

    def bias_of(self, value: ir.Value | None, rank: int | None) -> F32 | None:
        """A constant operand of an addition as float32 [N], None if it is none or would change the result's shape.

        Args:
            value: the operand.
            rank: dimensions of the product; None if unknown.
        """
        constants = self._shared.constants
        if value is None or value not in constants:
            return None
        try:
            array = constants.array(value)
        except ModelError:
            return None
        per_output = array.ndim > 0 and array.shape[-1] == array.size == self._n
        if not (per_output or array.size == 1) or array.ndim > (1 if rank is None else rank):
            return None
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            return None
        bias: F32 = np.broadcast_to(array.reshape(-1).astype(np.float32), (self._n,))
        return bias

    def following_bias(self) -> tuple[ir.Node, F32] | None:
        """(the Add after the product, its constant [N]) if nobody else sees the product."""
        product = self.node.outputs[0]
        uses = list(product.uses())
        if len(uses) != 1 or product.is_graph_output():
            return None
        add = uses[0].node
        if add.domain not in STANDARD or add.op_type != "Add" or add.graph is not self.node.graph:
            return None
        if len(add.inputs) != 2 or len(add.outputs) != 1 or add.attributes:
            return None  # no addition of two values
        bias = self.bias_of(add.inputs[1 - uses[0].idx], rank_of(product))
        return None if bias is None else (add, bias)

    def fuse(self, bias: F32, name: str) -> F32:
        """Note that a bias goes into the operator; ``name`` is of what is no longer there."""
        self.linear.fused.append(name)
        self._shared.fused += 1
        return bias

    def operator(self, x: ir.Value | None, *, factor: float = 1.0, bias: F32 | None = None) -> ir.Value:
        """The operator node: X [..., K] -> Y [..., N], times ``factor``, plus ``bias`` [N]."""
        cast = self.dtype == ir.DataType.BFLOAT16
        operands = self._shared.weights.operands(self.linear, factor)
        if cast:
            x = self.op("Cast", "float32", [x], {"to": ir.DataType.FLOAT})
        if bias is not None:
            operands = operands.with_bias(self.constant("bias", np.ascontiguousarray(bias, self.storage)))
        name = self.node.name or self.linear.name
        y = self._output(name)
        self._append(make_node([Layer(name, operands, y, self._n, self._stages)], x, k=self._k))
        return self.op("Cast", "bfloat16", [y], {"to": ir.DataType.BFLOAT16}) if cast else y

    def op(
        self, op_type: str, suffix: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int | list[int]]
    ) -> ir.Value:
        """A standard node beside the operator."""
        name = f"{self.node.name or self.linear.name}/{suffix}"
        output = self._output(name)
        self._append(ir.node(op_type, inputs, attributes=attributes, outputs=[output], name=name))
        return output

    def constant(self, suffix: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A small initializer, called after the layer."""
        return self._shared.weights.constant(f"{self.linear.name}.{suffix}", array)

    def put_in(self, old: list[ir.Node], last: ir.Node, y: ir.Value) -> None:
        """Put the nodes made so far in the place of ``old``, with ``y`` for what ``last`` of them gives."""
        graph = self.node.graph
        if graph is None:
            raise AssertionError(f"{self.linear.name}: is in no graph")
        result = last.outputs[0]
        self._shared.orphans.extend(value for node in old for value in node.inputs if value is not None)
        if y.producer() is not None and result.type is None:
            y.type = ir.TensorType(self.dtype)
        self._shared.removal.replace(graph, result, y)
        graph.insert_after(last, self._nodes)
        for node in old[::-1]:
            self._shared.removal.add(node)

    def _output(self, name: str) -> ir.Value:
        return ir.Value(name=self._shared.names.new(f"{name}/output"))

    def _append(self, node: ir.Node) -> None:
        node.metadata_props.update(self.node.metadata_props)
        self._nodes.append(node)
