"""The loss of tuning: how far predictions are from the float model's, without ever holding all logits."""

from __future__ import annotations

from typing import Any

# Logits that are there at a time: memory of this size is used again and again, while more is given back to the system and asked for
# anew, which takes longer than the arithmetic.
_LOGITS = 1 << 22


def tokens_at_once(vocabulary: int) -> int:
    """Whose logits are there at a time."""
    return max(16, _LOGITS // vocabulary)


def divergence(
    student: Any, teacher: Any, student_head: Any, teacher_head: Any, softcap: float | None, factor: Any = None
) -> Any:
    """Mean of KL(teacher || student) over tokens, nats, which gradients can go back through to ``student`` and ``factor``.

    Args:
        student: torch float32 [tokens, hidden], after the final norm.
        teacher: the same of the float model.
        student_head: [vocabulary, hidden], any float type, the type of its products.
        teacher_head: likewise.
        softcap: of the logits, or None.
        factor: torch float32 [vocabulary], on the student's logits before they are capped, or None for ones.
    """
    return _function().apply(student, teacher, student_head, teacher_head, softcap, factor)


def _function() -> Any:
    import torch

    def log_probabilities(logits: Any, softcap: float | None) -> tuple[Any, Any]:
        """And the derivative of capped logits, or None."""
        if softcap is None:
            return logits.log_softmax(-1), None
        bent = torch.tanh(logits / softcap)
        return (softcap * bent).log_softmax(-1), 1 - bent * bent

    class Divergence(torch.autograd.Function):
        @staticmethod
        def forward(
            context: Any,
            student: Any,
            teacher: Any,
            student_head: Any,
            teacher_head: Any,
            softcap: float | None,
            factor: Any,
        ) -> Any:
            gradient, total = torch.empty_like(student), 0.0
            of_factor = None if factor is None else torch.zeros_like(factor)
            tokens = tokens_at_once(len(student_head))
            for start in range(0, len(student), tokens):
                part = slice(start, start + tokens)
                products = (student[part].to(student_head.dtype) @ student_head.T).float()
                logits = products if factor is None else products * factor
                wanted = (teacher[part].to(teacher_head.dtype) @ teacher_head.T).float()
                found, slope = log_probabilities(logits, softcap)
                expected, _ = log_probabilities(wanted, softcap)
                weights = expected.exp()
                total += float((weights * (expected - found)).sum())
                change = (found.exp() - weights) / len(student)
                if slope is not None:
                    change *= slope
                if factor is not None:
                    of_factor += (change * products).sum(0)
                    change *= factor
                gradient[part] = (change.to(student_head.dtype) @ student_head).float()
            context.save_for_backward(gradient, of_factor)
            return torch.tensor(total / len(student))

        @staticmethod
        def backward(context: Any, above: Any) -> Any:
            gradient, of_factor = context.saved_tensors
            return gradient * above, None, None, None, None, None if of_factor is None else of_factor * above

    return Divergence
