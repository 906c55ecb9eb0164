"""Multipliers and scales that training learned: small tensors beside ``<module>.weight`` in the checkpoint.

config.json's entry ``fairy2i`` says which there are: ``row_multiplier``, ``col_multiplier`` and ``scales`` may be ``learned``.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fairy2i_export.codes.choices import LEARNED, Choices, RowMultiplier
from fairy2i_export.codes.weight_checks import check_multiplier
from fairy2i_export.source.checkpoint import Checkpoint


def learned_shapes(module: str, out_features: int, in_features: int, choices: Choices) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of what the checkpoint has to hold for one linear layer beside weight and bias."""
    shapes: dict[str, tuple[int, ...]] = {}
    if choices.row_multiplier == LEARNED:
        shapes[f"{module}.row_multiplier"] = (out_features,)
    if choices.col_multiplier == LEARNED:
        shapes[f"{module}.col_multiplier"] = (in_features,)
    if choices.scales == LEARNED:
        shapes[f"{module}.scales"] = (choices.stages, 2, 2)
    return shapes


def quantizer_arguments(
    checkpoint: Checkpoint, module: str, out_features: int, in_features: int, choices: Choices
) -> dict[str, Any]:
    """Keyword arguments of :func:`fairy2i_export.codes.quantizer.quantize` for one linear layer, learned tensors read.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
        WeightError: it has another shape or dtype, or values that are not finite or zero.
    """
    row_multiplier: RowMultiplier = "rms" if choices.row_multiplier == "rms" else "none"
    arguments: dict[str, Any] = {"quantizer": choices.quantizer, "row_multiplier": row_multiplier}
    for tensor, shape in learned_shapes(module, out_features, in_features, choices).items():
        key = tensor.rpartition(".")[2]
        arguments[key] = check_multiplier(checkpoint.read(tensor), shape, tensor, zero=key == "scales")
    return arguments


def learned_digest(checkpoint: Checkpoint, choices: Choices) -> str:
    """Hash of all learned tensors of a checkpoint; they are small."""
    total = hashlib.sha256()
    endings = tuple(learned_shapes("", 0, 0, choices))
    for tensor in sorted(checkpoint.owners):
        if endings and tensor.endswith(endings):
            total.update(f"{tensor}\n".encode() + checkpoint.read(tensor).tobytes())
    return total.hexdigest()
