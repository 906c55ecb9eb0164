"""What the passes did to a model, told: in the report, in warnings, in the metadata of the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from fairy2i_export.output.metadata import RECOVERED, Rewritten, describe_rewrite
from fairy2i_export.request.request import Request
from fairy2i_export.rewrite.linears import Linear, Recipe
from fairy2i_export.rewrite.operands import PackedWeights
from fairy2i_export.rewrite.result.report import RewrittenLinear


@dataclass
class Changed:
    """The model after all passes, in memory, nothing quantized yet."""

    passes: dict[str, int]
    linears: list[Linear]
    weights: PackedWeights
    already: int
    dense_bytes: int
    packed: list[ir.Value] = field(default_factory=list)

    @cached_property
    def rewritten(self) -> list[Linear]:
        return [linear for linear in self.linears if linear.alive]


def rewritten_linears(changed: Changed) -> tuple[RewrittenLinear, ...]:
    """The report's lines; layers that share a matrix share the error of the one that was packed."""
    packed: dict[tuple[ir.Value | None, bool], str] = {}
    for linear in changed.rewritten:
        packed.setdefault((linear.value, linear.transposed), linear.name)
    errors = changed.weights.errors
    return tuple(_line(linear, errors.get(packed[linear.value, linear.transposed])) for linear in changed.rewritten)


def _line(linear: Linear, error: float | None) -> RewrittenLinear:
    if linear.shape is None or linear.recipe is None or linear.value is None:
        raise AssertionError(f"{linear.name}: not recognised")
    return RewrittenLinear(
        name=linear.name,
        node=linear.node.name or "",
        operator=linear.operator,
        weight=linear.value.name or "",
        out_features=linear.shape[0],
        in_features=linear.shape[1],
        stages=linear.recipe.stages,
        origin=linear.recipe.origin,
        fused=tuple(linear.fused),
        error=error,
    )


def warnings_of(changed: Changed, request: Request) -> tuple[str, ...]:
    """What the user should know about the weights, one sentence each."""
    warnings = []
    errors = changed.weights.errors
    recipes = [(linear.name, linear.recipe) for linear in changed.rewritten if linear.recipe is not None]
    fresh = [errors[name] for name, recipe in recipes if recipe.origin == "quantized" and name in errors]
    if fresh and not request.trained:
        warnings.append(
            f"{len(fresh)} matrices were quantized, which changed them by {sum(fresh) / len(fresh):.0%} on average, and "
            "nothing in an ONNX file says whether the model was trained for that: if it was, --trained confirms it; a plain "
            "pretrained model will produce nonsense"
        )
    other = sum(recipe.origin != "quantized" and recipe.stages != request.stages for _, recipe in recipes)
    if request.asked["stages"] is not None and other:
        warnings.append(
            f"{other} matrices keep the number of stages that they were made with, not --stages {request.stages}"
        )
    return tuple(warnings)


def describe(model: ir.Model, changed: Changed, path: Path, sha256: str) -> None:
    """Write the metadata of the result."""
    recipes = [linear.recipe for linear in changed.rewritten if linear.recipe is not None]

    def stated(recipe: Recipe, value: object) -> str:
        return RECOVERED if recipe.origin == "recovered" else str(value)

    layers = Rewritten(
        stages=tuple(recipe.stages for recipe in recipes),
        profile=tuple(stated(recipe, recipe.profile) for recipe in recipes),
        quantizer=tuple(stated(recipe, recipe.quantizer) for recipe in recipes),
        row_multiplier=tuple(stated(recipe, recipe.row_multiplier) for recipe in recipes),
    )
    describe_rewrite(model, layers, source=path.name, sha256=sha256, others=changed.already > 0)
