"""How two next-token distributions agree, position by position of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.native import F32
from fairy2i_export.output.contract.logits import log_softmax

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Logits of default mode compared with a reference, by position of a text.

    Attributes:
        reference: what it is compared with: ``torch`` or ``exact mode``.
        tokens: text of every token.
        kl: float64 [length], KL(reference || model) in nats at every position.
        same: bool [length], whether the most likely next token is the same.
        best: most likely next tokens, (model's, reference's), as text.
        probability: float64 [length, 2], how likely each finds its own.
        loss: float64 [length - 1, 2], of the next token, model and reference, nats.
    """

    reference: str
    tokens: list[str]
    kl: F64
    same: npt.NDArray[np.bool_]
    best: list[tuple[str, str]]
    probability: F64
    loss: F64


def agreement(
    found: F32, expected: F32, ids: npt.NDArray[np.int64], decode: Callable[[list[int]], str], reference: str
) -> Agreement:
    """Compare logits [length, vocab] of a text with token ids [length]."""
    q, p = log_softmax(found), log_softmax(expected)
    best = np.stack([found.argmax(-1), expected.argmax(-1)], axis=1)
    rows = np.arange(len(ids))
    here = rows[:-1]
    return Agreement(
        reference=reference,
        tokens=token_texts(ids.tolist(), decode),
        kl=np.maximum((np.exp(p) * (p - q)).sum(-1), 0),
        same=best[:, 0] == best[:, 1],
        best=[(decode([int(a)]), decode([int(b)])) for a, b in best],
        probability=np.exp(np.stack([q[rows, best[:, 0]], p[rows, best[:, 1]]], axis=1)),
        loss=np.stack([-q[here, ids[1:]], -p[here, ids[1:]]], axis=1),
    )


def token_texts(ids: list[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that every token adds to those before it; special tokens add nothing."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end])
        texts.append(text[len(before) :])
        before = text
    return texts
