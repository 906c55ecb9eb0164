"""Open tokenizer.json so that a damaged one is an error and nothing worse.

The tokenizers library trusts the file: it aborts the process where a size in it asks for more memory than there is, and it
panics, which Python sees as an exception that is no ``Exception``. What can be checked before is checked here; what still
panics is caught. (The library writes a panic's own words to standard error before that.)
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import tokenizers

from fairy2i_runtime.errors import printable
from fairy2i_runtime.regular_file import TOKENIZER_BYTES, parse_json, read_regular

MOST_GROWTH = 1 << 14  # how many times longer a text may become; the usual rules make a character 50 bytes at most
_HAS_CHARSMAP = re.compile(rb"recompiled|\\u00[2-7]")  # the name, or ASCII written so that it could be it
_PROBES = ("", "Once 1é\n")
P = ParamSpec("P")
R = TypeVar("R")


class TokenizerFileError(Exception):
    """What is wrong with a tokenizer, worded to follow the name of its file and a colon."""


class TokenizerPanicError(TokenizerFileError):
    """The tokenizers library panicked."""


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        TokenizerFileError: if it is missing, too large, no regular file, or damaged; a tokenizer that panics at a short text
            is.
    """
    try:
        data = read_regular(path, TOKENIZER_BYTES, "a tokenizer")
    except OSError as error:
        raise TokenizerFileError(f"cannot be read: {error.strerror}") from error
    return parse_tokenizer(data)


def parse_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """As :func:`open_tokenizer`, of the contents of a file."""
    growth = 1.0
    try:
        if _HAS_CHARSMAP.search(data):
            growth = math.prod(_charsmap_growth(value) for value in _charsmaps(parse_json(data)))
        text = data.decode("utf-8")
    except ValueError as error:
        raise TokenizerFileError(f"is not valid JSON ({error})") from error
    backend = guarded(tokenizers.Tokenizer.from_str, text)
    for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
        if part is not None:
            growth *= math.prod(_growth(rule) for rule in _objects(json.loads(guarded(part.__getstate__))))
    if growth > MOST_GROWTH:
        raise TokenizerFileError(f"its rules could make a text {growth:.3g} times as long, more than {MOST_GROWTH:,} times")
    backend.no_truncation()
    backend.no_padding()
    for text in _PROBES:
        try:
            guarded(backend.decode, guarded(backend.encode, text).ids)
        except TokenizerPanicError:
            raise
        except TokenizerFileError:  # it lacks tokens for this text, and a token for unknown ones
            pass
    return backend


def guarded(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the tokenizers library.

    Raises:
        TokenizerFileError: if it raises what it has no class for, or panics.
        TypeError, OverflowError: as they are: the caller gave something else than texts or ids.
    """
    try:
        return call(*args, **kwargs)
    except (TypeError, OverflowError):
        raise
    except Exception as error:  # the library raises plain Exception
        raise TokenizerFileError(f"the tokenizers library refuses it: {printable(str(error))}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # an interruption
            raise
        raise TokenizerPanicError(f"is damaged: the tokenizers library gave up: {printable(str(error))}") from None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """A value of JSON and all that is in it, as far as these are objects."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            yield from _objects(item)


def _charsmaps(value: Any) -> Iterator[Any]:
    for found in _objects(value):
        if "precompiled_charsmap" in found:
            yield found["precompiled_charsmap"]


def _charsmap_growth(value: Any) -> int:
    """How many bytes a character may become. The map: the size of a table in 4 bytes, the table, texts that end with a zero."""
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"precompiled_charsmap: {error}") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or size > len(data) - 4:
        raise ValueError(f"precompiled_charsmap: of {len(data)} bytes the table is to take {size}")
    return max(1, max(map(len, data[4 + size :].split(b"\0"))))


def _growth(rule: dict[str, Any]) -> int:
    """How many times longer one rule may make a text."""
    content = rule.get("content" if rule.get("type") == "Replace" else "prepend")
    if not isinstance(content, str):
        return 1
    pattern = rule.get("pattern")
    least = (
        1 if isinstance(pattern, dict) and pattern.get("String") else 0
    )  # a regular expression may match between characters
    return max(1, len(content) + (1 - least if content else 0))
