"""The loss: cross entropy of the text, and divergence of the teacher's distribution from the student's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fairy2i_export.train.data.packing import IGNORED


def predictions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of what is predicted at all.

    Args:
        logits: [batch, length, vocabulary]; position i predicts token i + 1.
        labels: int64 [batch, length], IGNORED where nothing is predicted.

    Returns:
        Logits [n, vocabulary] in float32 and labels int64 [n].
    """
    shifted = labels[:, 1:].reshape(-1)
    wanted = shifted != IGNORED
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    if bool(wanted.all()):
        return flat.float(), shifted
    return flat[wanted].float(), shifted[wanted]


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over predictions of -log p(label), nats; arguments as returned by :func:`predictions`."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def divergence_sum(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over predictions of T^2 KL(teacher || student), both softened by the temperature T; nats.

    The factor T^2 keeps the gradient's size when T changes (Hinton et al. 2015).

    Args:
        student: logits [n, vocabulary], float32.
        teacher: the same of the teacher.
        temperature: T.
    """
    log_q = functional.log_softmax(student / temperature, dim=-1)
    with torch.no_grad():
        log_p = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
