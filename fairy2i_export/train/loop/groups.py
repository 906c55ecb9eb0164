"""What the optimizer tells apart: latent weights and everything else, and the units that rates count in."""

from __future__ import annotations

from typing import Any

from torch import nn

from fairy2i_export.train.qat.modules import QATLinear
from fairy2i_export.train.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for AdamW, latent weights first.

    AdamW moves every entry by about the rate, however large it is. Where layers have a unit (:attr:`QATLinear.unit`), the rates of
    their latent weights and row multipliers are shares of it.

    Args:
        model: prepared, or a float one.
        recipe: with its learning rates.
    """
    latent, units = set(), {}
    for module in model.modules():
        if isinstance(module, QATLinear):
            latent.add(id(module.weight))
            units[id(module.weight)] = module.unit
            if module.row_multiplier is not None:
                units[id(module.row_multiplier)] = module.unit
    rates = {True: recipe.learning_rate, False: recipe.float_learning_rate or recipe.learning_rate}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for chosen in (True, False):
        for parameter in model.parameters():
            if not parameter.requires_grad or (id(parameter) in latent) is not chosen:
                continue
            unit = units.get(id(parameter), 1.0)
            decay = recipe.weight_decay if chosen or not latent else 0.0
            group = {"params": [], "lr": rates[chosen] * unit, "weight_decay": decay, "unit": unit}
            groups.setdefault((chosen, unit), group)["params"].append(parameter)
    return list(groups.values())
