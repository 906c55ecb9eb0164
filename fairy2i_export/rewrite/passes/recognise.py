"""Pass "recognise": how the codes of every selected matrix are to be made.

Three kinds of matrices are told apart, in this order:

1. the matrix is a sum of 1 to 4 stages already, dequantized: its own codes, scales and row multipliers are recovered,
   whatever --stages says;
2. a quantizer in the graph computes it from an initializer of the same shape (a straight-through quantizer as torch exports
   it): one of our settings reproduces the result from that latent weight, and the latent weight is quantized;
3. anything else is taken for latent or plain weights and quantized as the options say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fairy2i_export.codes.choices import MAX_STAGES, PROFILES, ROW_MULTIPLIERS, Profile, RowMultiplier
from fairy2i_export.codes.native import F32
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.quantizer import quantize
from fairy2i_export.codes.recover.row_sums import explain_any
from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.codes.weight_checks import looks_dequantized
from fairy2i_export.errors import ModelError, WeightError
from fairy2i_export.rewrite.linears import Linear, Origin, Recipe, float_matrix, matrix_of
from fairy2i_export.rewrite.values.constants import Constants

# The quantizer in the graph adds in another order: a scale may be rounded to the neighbouring bfloat16, which is 0.4 %.
# Another number of stages, profile or multiplier is 4 % or more away.
_SAME = 0.01


class Setting(NamedTuple):
    """Options of the quantizer."""

    stages: int
    profile: Profile
    row_multiplier: RowMultiplier
    quantizer: str

    def quantize(self, weight: F32) -> QuantizedLinear:
        """The weight quantized that way."""
        return quantize(weight, self.stages, self.profile, row_multiplier=self.row_multiplier, quantizer=self.quantizer)

    def recipe(self, origin: Origin, latent: ir.Value | None = None, transposed: bool = False) -> Recipe:
        """The recipe of a matrix that is quantized that way."""
        return Recipe(
            origin,
            self.stages,
            self.row_multiplier,
            self.profile,
            self.quantizer,
            latent=latent,
            latent_transposed=transposed,
        )


@dataclass
class Recogniser:
    """Finds the recipe of every layer.

    Attributes:
        constants: of the model.
        setting: for matrices that have to be quantized.
    """

    constants: Constants
    setting: Setting
    _last: list[Setting] = field(default_factory=list)  # what reproduced a layer before: the others are likely the same
    _known: dict[tuple[ir.Value, bool], Linear] = field(default_factory=dict)  # by matrix: shared ones are looked at once

    def run(self, linears: Sequence[Linear], advance: Callable[[int], None]) -> int:
        """Fill in the recipes, or the reason against one; returns how many layers keep codes that they had before."""
        for linear in linears:
            if linear.alive and linear.value is not None:
                seen = self._known.setdefault((linear.value, linear.transposed), linear)
                if seen is linear:
                    self._recognise(linear)
                linear.recipe, linear.reason = seen.recipe, seen.reason
                advance(linear.parameters)
        return sum(linear.recipe is not None and linear.recipe.origin != "quantized" for linear in linears)

    def _recognise(self, linear: Linear) -> None:
        try:
            a = float_matrix(matrix_of(linear, self.constants))
        except ModelError as error:
            linear.reason = str(error)
            return
        if not np.isfinite(a).all():
            linear.reason = "values that are not finite"
            return
        own = explain_any(a)
        if own is not None:
            sums = own[
                1
            ]  # the codes are read off again when the layer is written: those of all layers would take much memory
            linear.recipe = Recipe("recovered", sums.stages, "none" if sums.rows is None else "rms", sums=sums)
            return
        linear.recipe = self._trained(linear, a)
        if linear.recipe is None and looks_dequantized(a):
            linear.reason = "only a few distinct values, but no exact sum of stages: quantizing would change it twice"
        elif linear.recipe is None:
            linear.recipe = self.setting.recipe("quantized")

    def _trained(self, linear: Linear, a: F32) -> Recipe | None:
        """The recipe that makes ``a`` from a latent weight in its subgraph."""
        if linear.value is None or not self.constants.computed(linear.value):
            return None
        for latent, transposed in self._latents(linear):
            weight = float_matrix(self.constants.array(latent))
            weight = float_matrix(weight.T) if transposed else weight
            for setting in self._settings():
                try:
                    q = setting.quantize(weight)
                except WeightError:
                    break  # not finite, or dequantized itself: no latent weight
                if _difference(a, q) <= _SAME:
                    self._last = [setting]
                    return setting.recipe("trained", latent, transposed)
        return None

    def _latents(self, linear: Linear) -> Iterator[tuple[ir.Value, bool]]:
        """Stored matrices of the right size in the subgraph, and whether they are [K, N]."""
        if linear.value is None or linear.shape is None:
            return
        for value in self.constants.stored_values(linear.value):
            tensor = self.constants.tensor(value)
            if tensor is None or not tensor.dtype.is_floating_point():
                continue
            shape = tuple(tensor.shape.numpy())
            if shape == linear.shape:
                yield value, False
            if shape == linear.shape[::-1]:
                yield value, True

    def _settings(self) -> Iterator[Setting]:
        # those that search take ten times as long: only where somebody asks for one
        quick = [name for name, strategy in STRATEGIES.items() if not strategy.searches]
        quantizers = tuple(dict.fromkeys((*quick, self.setting.quantizer)))
        everything = list(product(range(1, MAX_STAGES + 1), PROFILES, ROW_MULTIPLIERS))
        others = [Setting(*setting, quantizer) for quantizer in quantizers for setting in everything]
        yield from dict.fromkeys([*self._last, self.setting, *others])


def _difference(a: F32, q: QuantizedLinear) -> float:
    norm = float(np.linalg.norm(a))
    return float(np.linalg.norm(q.dequantize("none") - a)) / norm if norm else float(not q.codes.size)
