"""The operands of the new nodes as lazy tensors: a matrix is read, quantized, packed, written and forgotten in its turn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.layout import PackedLinear, pack, pack_coded, packed_size
from fairy2i_export.codes.quantized import change_of
from fairy2i_export.codes.quantizer import find_scales, quantize
from fairy2i_export.errors import ModelError
from fairy2i_export.onnx_graph.operator import Operands
from fairy2i_export.rewrite.linears import Linear, float_matrix
from fairy2i_export.rewrite.names import Names
from fairy2i_export.rewrite.values.constants import Constants


@dataclass
class PackedWeights:
    """Makes the initializers, once per matrix and factor.

    Attributes:
        constants: of the model, before anything was replaced.
        graph: the main graph, which gets the initializers.
        names: to take their names from.
        advance: told the parameters of every matrix that was packed.
        errors: relative quantization error by layer, filled while the model is written; 0 for codes that were there before.
        pool: threads that share the rows of a matrix; None = the calling thread alone.
    """

    constants: Constants
    graph: ir.Graph
    names: Names
    advance: Callable[[int], None] = lambda parameters: None
    errors: dict[str, float] = field(default_factory=dict)
    pool: Executor | None = None
    _packed: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value | None, _Layer]] = field(default_factory=dict)
    _scales: dict[tuple[ir.Value, bool, float], ir.Value] = field(default_factory=dict)

    def operands(self, linear: Linear, factor: float = 1.0) -> Operands:
        """Packed codes, scales times ``factor``, and the row multiplier if the recipe has one."""
        if linear.value is None or linear.shape is None or linear.recipe is None:
            raise AssertionError(f"{linear.name}: not recognised")
        key = (linear.value, linear.transposed)
        (n, k), stages = linear.shape, linear.recipe.stages
        if key not in self._packed:
            layer = _Layer(linear, self)
            size = (packed_size(n // 2, k // 2, stages),)
            packed = self._add(f"{linear.name}.packed", ir.DataType.UINT8, size, layer.packed)
            rows = None
            if linear.recipe.row_multiplier != "none":
                rows = self._add(f"{linear.name}.row_multiplier", ir.DataType.FLOAT, (n,), layer.rows)
            self._packed[key] = packed, rows, layer
        packed, rows, layer = self._packed[key]
        scaled = (*key, factor)
        if scaled not in self._scales:
            self._scales[scaled] = self._add(
                f"{linear.name}.scales", ir.DataType.FLOAT, (stages, 2, 2), lambda: layer.scales(factor)
            )
        return Operands(packed, self._scales[scaled], row_multiplier=rows)

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A small initializer that is known now."""
        tensor = ir.tensor(array, name=self.names.new(name))
        return self._register(tensor)

    def _add(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], function: Callable[[], ir.TensorProtocol]
    ) -> ir.Value:
        return self._register(ir.LazyTensor(function, dtype=dtype, shape=ir.Shape(shape), name=self.names.new(name)))

    def _register(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value


class _Layer:
    """One matrix; quantized when the first of its operands is asked for, and all but the packed bytes are kept."""

    def __init__(self, linear: Linear, weights: PackedWeights) -> None:
        self.linear = linear
        self.weights = weights
        self.small: PackedLinear | None = None
        if linear.value is None or linear.recipe is None:
            raise AssertionError(f"{linear.name}: not recognised")
        latent = linear.recipe.latent
        # taken now: the nodes that compute the matrix may be gone when the model is written
        self.read = weights.constants.reader(linear.value)
        self.read_latent = None if latent is None else weights.constants.reader(latent)

    def packed(self) -> ir.TensorProtocol:
        return ir.tensor(self._pack().packed)

    def scales(self, factor: float) -> ir.TensorProtocol:
        return ir.tensor((self._small().scales * np.float32(factor)).astype(np.float32))

    def rows(self) -> ir.TensorProtocol:
        rows = self._small().row_multiplier
        if rows is None:
            raise AssertionError(f"{self.linear.name}: a row multiplier was planned but not computed")
        return ir.tensor(rows)

    def _small(self) -> PackedLinear:
        if self.small is None:
            self._pack()
        if self.small is None:
            raise AssertionError("unreachable")
        return self.small

    def _pack(self) -> PackedLinear:
        p, error = self._packed_with_error()
        self.small = replace(p, packed=np.empty(0, np.uint8))
        self.weights.errors[self.linear.name] = error
        self.weights.advance(self.linear.parameters)
        return p

    def _packed_with_error(self) -> tuple[PackedLinear, float]:
        """The operands, and how far they are from the matrix that the model computes with now."""
        linear, recipe, pool = self.linear, self.linear.recipe, self.weights.pool
        if recipe is None:
            raise AssertionError(f"{linear.name}: not recognised")
        matrix = _turned(self.read(), linear.transposed)
        if recipe.sums is not None:
            q = recipe.sums.read(float_matrix(matrix))
            if q is None:
                raise ModelError(f"{linear.name}: the weights changed while the model was rewritten")
            return pack(q), change_of(float_matrix(matrix), q)
        if recipe.profile is None or recipe.quantizer is None:
            raise AssertionError(f"{linear.name}: nothing says how it is quantized")
        how: dict[str, Any] = {
            "quantizer": recipe.quantizer,
            "row_multiplier": recipe.row_multiplier,
            "name": linear.name,
        }
        if self.read_latent is not None:
            latent = _turned(self.read_latent(), recipe.latent_transposed)
            q = quantize(latent, recipe.stages, recipe.profile, **how)
            return pack(q), change_of(float_matrix(matrix), q)
        scaled = find_scales(matrix, recipe.stages, recipe.profile, pool=pool, **how)
        packed, error = pack_coded(scaled, pool)
        return PackedLinear(packed, scaled.scales, scaled.n, scaled.m, recipe.stages, scaled.row_multiplier), error


def _turned(stored: npt.NDArray[np.generic], transposed: bool) -> npt.NDArray[np.generic]:
    return stored.T if transposed else stored
