"""Perplexity of the source by torch, to compare an exported model's with: its weights quantized in the same way, or as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fairy2i_export.check.source_weights import SourceWeights, model_logits, torch_model
from fairy2i_export.codes.training_entry import says_trained
from fairy2i_export.output.contract.nodes import read_nodes
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
    source = _source(model, against, note)
    if source.note:
        note(source.note)
    return _scorer(torch_model(source, read_nodes(model.folder.model_file)))


def float_scorer(model: Model, source: str, note: Callable[[str], None]) -> Scorer:
    """A scorer that runs the source in torch as it is: what the model was before its weights were quantized.

    Args:
        model: the exported model, of any backend.
        source: what it was exported from.
        note: told what the user has to know about the comparison.
    """
    weights = _source(model, source, note)
    if says_trained(weights.checkpoint.config):
        note(f"{source} was trained for Fairy2i: its float weights were never meant to be run as they are")
    return _scorer(torch_model(weights, []))


def _source(model: Model, name: str, note: Callable[[str], None]) -> SourceWeights:
    """The source of a model, and what the user has to know about it as a whole."""
    checkpoint = open_source(name)
    for text in checkpoint.notes:
        note(text)
    source = SourceWeights(checkpoint, model.folder.model_file, model.metadata)
    if source.is_other:
        note(f"the model was exported from other files than those of {name}")
    return source


def _scorer(twin: Any) -> Scorer:
    """Runs a transformers model."""

    def score(ids: Sequence[int]) -> F64:
        array = np.asarray(ids, np.int64)
        return token_log_probs(model_logits(twin, array[:-1]), array[1:])

    return score
