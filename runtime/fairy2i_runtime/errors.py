"""Errors the runtime raises on purpose.

Every message states what was expected, what was found, where, and what to do. The command line prints the message alone
and exits with code 2; anything that is not a :class:`Fairy2iRuntimeError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Fairy2iRuntimeError(Exception):
    """Base class of every error a user can cause and repair."""


class LibraryError(Fairy2iRuntimeError):
    """The operator library is missing, of the wrong architecture, or onnxruntime is too old for it."""


class ModelFolderError(Fairy2iRuntimeError):
    """The model folder is missing, incomplete, damaged, or of a kind that is not read."""


class OptionError(Fairy2iRuntimeError):
    """An option has an unknown or impossible value."""


class ContextError(Fairy2iRuntimeError):
    """A prompt or a conversation does not fit into the context."""


class RunError(Fairy2iRuntimeError):
    """onnxruntime gave up in the middle of a run, for instance because memory was short."""


class ChatTemplateError(Fairy2iRuntimeError):
    """The chat template is invalid or refuses the conversation."""


class Fairy2iWarning(UserWarning):
    """Something that works and is probably not what was meant. The commands print it in one line; once for each place."""


def check_option(name: str, value: Any, kind: type, in_range: Callable[[Any], bool], expected: str) -> None:
    """Raise an :class:`OptionError` unless ``value`` is of the numeric ``kind`` and in range."""
    if not isinstance(value, kind) or isinstance(value, bool) or not in_range(value):
        raise OptionError(f"{name}: expected {expected}, got {value!r}")
