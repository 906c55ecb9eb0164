"""The loss: cross entropy of the text, and divergence of the teacher's distribution from the student's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairy2i_export.train.data.packing import IGNORED
from fairy2i_export.train.qat.devices import if_compiled

# Logits that are made probabilities at a time. What lies between logits and loss takes several times their memory, and a processor
# longer than the arithmetic does, unless it is small enough to be used again and again; other devices are better with more at once.
_AT_ONCE, _AT_ONCE_ON_DEVICES = 1 << 22, 1 << 26


class Losses(NamedTuple):
    """Sums over the positions that predict something, nats; float32 scalars.

    Attributes:
        loss: (1 - alpha) entropy + alpha divergence; the one that gradients go back from.
        entropy: -log p(label).
        divergence: T^2 KL(teacher || student), both softened by the temperature T; 0 without a teacher. The factor T^2 keeps the
            gradient's size when T changes (Hinton et al. 2015).
        predictions: int64, the number of those positions.
    """

    loss: Tensor
    entropy: Tensor
    divergence: Tensor
    predictions: Tensor


def losses(
    logits: Tensor, labels: Tensor, teacher: Tensor | None = None, alpha: float = 0.0, temperature: float = 1.0
) -> Losses:
    """What training goes by.

    Args:
        logits: [batch, length, vocabulary], any float type; position i predicts token i + 1. Their gradient has the same type.
        labels: int64 [batch, length], IGNORED where nothing is predicted.
        teacher: logits of the teacher, likewise; needed if alpha > 0.
        alpha: weight of the divergence.
        temperature: T.
    """
    return Losses(*_Losses.apply(logits, labels, teacher, alpha, temperature))  # type: ignore[no-untyped-call]


class _Losses(torch.autograd.Function):
    """The gradient is found on the way forward, some rows at a time, so that no probabilities need be kept."""

    @staticmethod
    def forward(
        context: Any, logits: Tensor, labels: Tensor, teacher: Tensor | None, alpha: float, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        vocabulary = logits.shape[-1]
        student, wanted = logits[:, :-1], labels[:, 1:]
        at_once = _AT_ONCE if logits.device.type == "cpu" else _AT_ONCE_ON_DEVICES
        rows = max(1, at_once // vocabulary)
        gradient = torch.zeros_like(logits) if context.needs_input_grad[0] else None
        entropy, divergence = torch.zeros(2, dtype=torch.float32, device=logits.device)
        of_rows = if_compiled(logits, _of_rows)
        for sequence in range(len(logits)):
            for start in range(0, student.shape[1], rows):
                place = (sequence, slice(start, min(start + rows, student.shape[1])))
                judged = None if teacher is None or alpha <= 0 else teacher[place]
                found = of_rows(student[place], wanted[place], judged, alpha, temperature, gradient is not None)
                entropy += found[0]
                divergence += found[1]
                if gradient is not None:
                    gradient[place] = found[2]
        context.save_for_backward(gradient)
        count = (wanted != IGNORED).sum()
        loss = entropy * (1 - alpha) + divergence * alpha if alpha > 0 else entropy.clone()
        context.mark_non_differentiable(entropy, divergence, count)
        return loss, entropy, divergence, count

    @staticmethod
    def backward(context: Any, above: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * above, None, None, None, None


def _of_rows(
    scores: Tensor, label: Tensor, teacher: Tensor | None, alpha: float, temperature: float, differentiated: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums of entropy and divergence of some rows, [], and the gradient of their loss with respect to ``scores``.

    Args:
        scores: logits [rows, vocabulary].
        label: int64 [rows].
        teacher: logits like ``scores``; None without a divergence.
        alpha: as for :func:`losses`.
        temperature: likewise.
        differentiated: whether the gradient is asked for.
    """
    told = (label != IGNORED).float()[:, None]
    label = label.clamp(min=0)[:, None]
    kind, scores = scores.dtype, scores.float()
    log_q = scores.log_softmax(-1)
    entropy, divergence = -(log_q.gather(1, label) * told).sum(), torch.zeros_like(told).sum()
    change = None
    if differentiated and alpha < 1:
        change = log_q.exp()
        change.scatter_add_(1, label, torch.full_like(told, -1.0))
        change *= 1 - alpha
    if teacher is not None:
        log_p = (teacher.float() / temperature).log_softmax(-1)
        if temperature != 1:
            log_q = (scores / temperature).log_softmax(-1)
        p = log_p.exp()
        divergence = ((p * (log_p - log_q)).sum(-1, keepdim=True) * told).sum() * temperature**2
        if differentiated:
            towards = (log_q.exp_() - p) * (alpha * temperature)
            change = towards if change is None else change.add_(towards)
    return entropy, divergence, None if change is None else (change * told).to(kind)
