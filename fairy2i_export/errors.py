"""Errors the exporter raises on purpose.

Every message states what was expected, what was found, where, and what to do. The command line prints the message alone
and exits with code 2; anything that is not a :class:`Fairy2iError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Any

from fairy2i_runtime import errors as runtime

_REASON_LENGTH = 300


def install_command(extra: str = "") -> str:
    """What to type to install this project, with an extra; no package index has it."""
    return f"pip install '.[{extra}]'" if extra else "pip install ."


def install_hint(extra: str) -> str:
    """The same with where to type it, for messages."""
    return f"{install_command(extra)} in a checkout of fairy2i-export's repository"


class Fairy2iError(runtime.UserError):
    """Base class of every error of the exporter that a user can cause and repair."""


class WeightError(Fairy2iError):
    """A weight tensor cannot be quantized: wrong rank, odd size, non-finite values, already dequantized."""


class FormatError(Fairy2iError):
    """Packed bytes, scales or attributes contradict the packed format (docs/format.md)."""


class CheckpointError(Fairy2iError):
    """The source checkpoint is missing, incomplete, truncated or of a kind that is not read."""


class ModelError(Fairy2iError):
    """The source ONNX model is missing, damaged, incomplete, too old, or holds nothing to rewrite; or a result does not load."""


class ArchitectureError(Fairy2iError):
    """The model is of an architecture, or uses a feature, that the graph builder does not know."""


class OptionError(Fairy2iError):
    """An option has an unknown or impossible value."""


def check_path(name: str, value: Any) -> str:
    """The path ``value`` as text.

    Raises:
        OptionError: it is none, empty, or what no file is called or UTF-8 cannot express.
    """
    return runtime.check_path(name, value, OptionError)


class LibraryError(Fairy2iError):
    """The operator library, whose code also quantizes and packs, is missing, does not load or is too old."""


class TokenizerError(Fairy2iError):
    """A tokenizer cannot be read, or cannot be expressed as an ONNX graph."""


class TrainingError(Fairy2iError):
    """Training cannot go on: the loss or a gradient is not finite."""


class OutputError(Fairy2iError):
    """The output folder cannot be written."""


def reason_of(error: BaseException) -> str:
    """What another library's exception says, in one line: the first of what began it, as some are wrapped many times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), "")[:_REASON_LENGTH] or type(error).__name__
