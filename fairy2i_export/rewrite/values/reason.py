"""What another library's exception says, in one line."""

from __future__ import annotations

_LENGTH = 300


def reason_of(error: BaseException) -> str:
    """The first line of what began it: onnx_ir wraps an error once for every message around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), "")[:_LENGTH] or type(error).__name__
