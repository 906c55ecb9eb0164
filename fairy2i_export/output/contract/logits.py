"""What the differences between two sets of logits mean: agreement, divergence, perplexity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LogitsComparison:
    """Logits compared with a reference over the positions of one text.

    Attributes:
        relative_error: ``|found - reference| / |reference|`` over all logits.
        top1_agreement: fraction of positions with the same most likely token.
        mean_kl: mean over positions of KL(reference || found), in nats.
        perplexity: of the text by the compared logits.
        reference_perplexity: of the text by the reference.
        perplexity_error: standard error of log(perplexity / reference_perplexity), from the spread over positions.
    """

    relative_error: float
    top1_agreement: float
    mean_kl: float
    perplexity: float
    reference_perplexity: float
    perplexity_error: float

    @property
    def log_ratio(self) -> float:
        """log(perplexity / reference_perplexity)."""
        return float(np.log(self.perplexity / self.reference_perplexity))


def log_softmax(logits: F32) -> F64:
    """Log-probabilities in float64 over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def compare(found: F32, reference: F32, ids: npt.NDArray[np.int64]) -> LogitsComparison:
    """Compare logits [length, vocab] of a text with token ids [length]."""
    p, q = log_softmax(reference), log_softmax(found)
    positions = np.arange(len(ids) - 1)
    loss, reference_loss = -q[positions, ids[1:]], -p[positions, ids[1:]]
    difference = loss - reference_loss
    return LogitsComparison(
        relative_error=float(np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference)),
        top1_agreement=float((found.argmax(-1) == reference.argmax(-1)).mean()),
        mean_kl=float((np.exp(p) * (p - q)).sum(-1).mean()),
        perplexity=float(np.exp(loss.mean())),
        reference_perplexity=float(np.exp(reference_loss.mean())),
        perplexity_error=float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0,
    )
