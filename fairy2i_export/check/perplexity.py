"""Perplexity of the source by torch, to compare an exported model's with: the same windows, the same quantized weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fairy2i_export.check.nodes import read_nodes
from fairy2i_export.check.source_weights import SourceWeights, model_logits, torch_model
from fairy2i_export.source.hub import open_source
from fairy2i_runtime import Model
from fairy2i_runtime.measure.perplexity import Perplexity, Scorer
from fairy2i_runtime.measure.scoring import F64, token_log_probs


def paired_difference(found: Perplexity, reference: Perplexity) -> dict[str, Any]:
    """log(perplexity / reference perplexity) and its standard error, from the differences token by token."""
    difference = reference.log_probs - found.log_probs
    count = len(difference)
    error = float(difference.std(ddof=1) * np.sqrt(count)) / found.windows.denominator if count > 1 else 0.0
    return {
        "protocol": found.windows.protocol,
        "log_ratio": float(difference.sum()) / found.windows.denominator,
        "standard_error": error,
    }


def torch_scorer(model: Model, against: str, note: Callable[[str], None]) -> Scorer:
    """A scorer that runs the source in torch with the model's way of quantizing.

    Args:
        model: the exported model.
        against: the source.
        note: told what the user has to know about the comparison.
    """
    checkpoint = open_source(against)
    for text in checkpoint.notes:
        note(text)
    source = SourceWeights(checkpoint, model.metadata)
    if source.is_other:
        note(f"the model was exported from other files than those of {against}")
    if source.note:
        note(source.note)
    twin = torch_model(source, read_nodes(model.folder.model_file))

    def score(ids: Sequence[int]) -> F64:
        array = np.asarray(ids, np.int64)
        return token_log_probs(model_logits(twin, array[:-1]), array[1:])

    return score
