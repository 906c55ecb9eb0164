"""Pass "replace": a Fairy2iMatMul node in the place of every selected product, with the bias that follows it.

    MatMul(x, W)            Fairy2iMatMul(x)                                   W constant [K, N]
    MatMul(W, x)            Transpose -> Fairy2iMatMul -> Transpose            W constant [N, K]
    MatMul(x, W) + b        Fairy2iMatMul(x, bias = b)                         b constant, one value per output
    Gemm(x, W, C)           Fairy2iMatMul(x, bias = beta C)            alpha goes into the scales

bfloat16 products get a Cast to float32 before and one back after: the operator has no bfloat16 form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.layout import LAYOUT_VERSION, SCALE_SCOPE_MATRIX
from fairy2i_export.codes.native import F32
from fairy2i_export.errors import ModelError
from fairy2i_export.onnx_graph.function import DOMAIN, OP_NAME
from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.operands import Names, PackedWeights
from fairy2i_export.rewrite.values.constants import Constants
from fairy2i_export.rewrite.values.ranks import rank_of


@dataclass
class Replacer:
    """Replaces nodes one by one.

    Attributes:
        constants: of the model.
        weights: makes the operands.
        names: for new values.
        orphans: inputs of the nodes that were taken out: what the prune pass looks at.
        fused: biases that went into the operator.
    """

    constants: Constants
    weights: PackedWeights
    names: Names
    orphans: list[ir.Value]
    fused: int = 0

    def run(self, linears: Sequence[Linear]) -> int:
        """Replace all layers that have a recipe; returns how many."""
        for linear in linears:
            if linear.alive:
                _Replacement(self, linear).apply()
        return sum(linear.alive for linear in linears)

    def bias_of(self, value: ir.Value | None, size: int, rank: int | None) -> F32 | None:
        """A constant operand of an addition as float32 [size], None if it is none or would change the result's shape.

        Args:
            value: the operand.
            size: N.
            rank: dimensions of the product; None if unknown.
        """
        if value is None or value not in self.constants:
            return None
        try:
            array = self.constants.array(value)
        except ModelError:
            return None
        per_output = array.ndim > 0 and array.shape[-1] == array.size == size
        if not (per_output or array.size == 1) or array.ndim > (1 if rank is None else rank):
            return None
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            return None
        bias: F32 = np.broadcast_to(array.reshape(-1).astype(np.float32), (size,))
        return bias


class _Replacement:
    """The new nodes of one layer, collected and then put in at once."""

    def __init__(self, replacer: Replacer, linear: Linear) -> None:
        if linear.shape is None or linear.dtype is None or linear.recipe is None:
            raise AssertionError(f"{linear.name}: not recognised")
        self.replacer = replacer
        self.linear = linear
        self.node = linear.node
        self.n, self.k = linear.shape
        self.dtype = linear.dtype
        self.stages = linear.recipe.stages
        self.nodes: list[ir.Node] = []

    def apply(self) -> None:
        old, last = [self.node], self.node
        factor, addend, beta = 1.0, None, 1.0
        x = self.node.inputs[1 if self.linear.on_left else 0]
        if self.node.op_type == "Gemm":
            factor, beta = _number(self.node, "alpha", 1.0), _number(self.node, "beta", 1.0)
            addend = self.node.inputs[2] if len(self.node.inputs) > 2 else None
            if _number(self.node, "transA", 0):
                x = self._op("Transpose", "transposed_input", [x], {"perm": [1, 0]})
        bias = None if addend is None else self.replacer.bias_of(addend, self.n, 2)
        if bias is not None:
            bias = (bias * np.float32(beta)).astype(np.float32)
            addend = None
            self.linear.fused.append("C")
        elif addend is None and not self.linear.on_left:
            following = self._following_bias()
            if following is not None:
                last, bias = following
                old.append(last)
                self.linear.fused.append(last.name or "Add")
        self.replacer.fused += bias is not None
        y = self._between_transposes(x, factor, bias) if self.linear.on_left else self._operator(x, factor, bias)
        if addend is not None:
            y = self._add(y, addend, beta)
        self._put_in(old, last, y)

    def _following_bias(self) -> tuple[ir.Node, F32] | None:
        """(the Add after the product, its constant [N]) if nobody else sees the product."""
        product = self.node.outputs[0]
        uses = list(product.uses())
        if len(uses) != 1 or product.is_graph_output():
            return None
        add = uses[0].node
        if add.domain not in ("", "ai.onnx") or add.op_type != "Add" or add.graph is not self.node.graph:
            return None
        other = add.inputs[1 - uses[0].idx]
        bias = self.replacer.bias_of(other, self.n, rank_of(product))
        return None if bias is None else (add, bias)

    def _operator(self, x: ir.Value | None, factor: float, bias: F32 | None) -> ir.Value:
        """X [..., K] -> Y [..., N]."""
        operands = self.replacer.weights.operands(self.linear, factor)
        cast = self.dtype == ir.DataType.BFLOAT16
        if cast:
            x = self._op("Cast", "float32", [x], {"to": ir.DataType.FLOAT})
        stored = None
        if bias is not None:
            dtype = np.float16 if self.dtype == ir.DataType.FLOAT16 else np.float32
            stored = self.replacer.weights.constant(f"{self.linear.name}.bias", np.ascontiguousarray(bias, dtype))
        attributes = {
            "K": self.k,
            "N": self.n,
            "stages": self.stages,
            "layout_version": LAYOUT_VERSION,
            "scale_scope": SCALE_SCOPE_MATRIX,
        }
        inputs = [x, operands.packed, operands.scales, stored, operands.row_multiplier, None]
        y = self._op(OP_NAME, "", inputs, attributes, domain=DOMAIN)
        return self._op("Cast", "bfloat16", [y], {"to": ir.DataType.BFLOAT16}) if cast else y

    def _between_transposes(self, x: ir.Value | None, factor: float, bias: F32 | None) -> ir.Value:
        """W x = (x^T W^T)^T over the last two dimensions; a vector x needs no transposition."""
        rank = rank_of(x)
        if rank is None:
            raise AssertionError(f"{self.linear.name}: the rank of its input was known when it was resolved")
        if rank < 2:
            return self._operator(x, factor, bias)
        swap = {"perm": [*range(rank - 2), rank - 1, rank - 2]}
        y = self._operator(self._op("Transpose", "transposed_input", [x], swap), factor, bias)
        return self._op("Transpose", "transposed_output", [y], swap)

    def _add(self, y: ir.Value, addend: ir.Value, beta: float) -> ir.Value:
        """Gemm's third operand where it is no constant row."""
        if beta != 1.0:
            kind = np.float16 if self.dtype == ir.DataType.FLOAT16 else np.float32
            constant = self.replacer.weights.constant(f"{self.linear.name}.beta", np.array(beta, kind))
            if self.dtype == ir.DataType.BFLOAT16:
                constant = self._op("CastLike", "beta_cast", [constant, addend], {})
            addend = self._op("Mul", "beta_addend", [addend, constant], {})
        return self._op("Add", "sum", [y, addend], {})

    def _op(
        self,
        op_type: str,
        suffix: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | list[int]],
        *,
        domain: str = "",
    ) -> ir.Value:
        base = self.node.name or self.linear.name
        name = f"{base}/{suffix}" if suffix else base
        output = ir.Value(name=self.replacer.names.new(f"{name}/output"))
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, outputs=[output], name=name)
        node.metadata_props.update(self.node.metadata_props)
        self.nodes.append(node)
        return output

    def _put_in(self, old: list[ir.Node], last: ir.Node, y: ir.Value) -> None:
        graph = self.node.graph
        if graph is None:
            raise AssertionError(f"{self.linear.name}: is in no graph")
        result = last.outputs[0]
        self.replacer.orphans.extend(value for node in old for value in node.inputs if value is not None)
        if y.producer() is not None and result.type is None:
            y.type = ir.TensorType(self.dtype)
        ir.convenience.replace_nodes_and_values(graph, last, old[::-1], self.nodes, [result], [y])


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
