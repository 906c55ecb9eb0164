"""What a server is told before it begins. Imports none of the packages it needs, so that it can say which are missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Any

from fairy2i_runtime.errors import LibraryError, OptionError, check_option, check_text

KEY_VARIABLE = "FAIRY2I_API_KEY"
_NEEDS = ("starlette", "uvicorn", "pydantic", "prometheus_client")


@dataclass(frozen=True)
class Settings:
    """The limits of a server, and where it listens.

    Attributes:
        host: name or address to listen on; another one than this machine's own (loopback) needs a key.
        port: 0 = any that is free.
        key: what clients have to present; None = anybody on this machine may ask.
        name: of the model, in requests and answers; None = that of its folder.
        parallel: answers that are written at the same time, each with a key-value cache of a full context.
        queue: requests that may wait for one of those to end; more are refused.
        kept_caches: most caches of ended answers that are kept for a follow-up; 0 = none.
        cache_mb: most megabytes (10^6 bytes) of those.
        max_tokens: most tokens of an answer; None = what the context has room for.
        max_body_kb: most kilobytes (1000 bytes) of a request.
        timeout: seconds from a request's headers to the end of its answer.
        grace: seconds that answers have to end after the server was told to.

    Raises:
        OptionError: if a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = field(default=None, repr=False)
    name: str | None = None
    parallel: int = 4
    queue: int = 16
    kept_caches: int = 8
    cache_mb: int = 1024
    max_tokens: int | None = None
    max_body_kb: int = 1024
    timeout: float = 600.0
    grace: float = 10.0

    def __post_init__(self) -> None:
        at_least: Callable[[int], Callable[[Any], bool]] = lambda low: lambda value: value >= low  # noqa: E731
        for name, low in (("parallel", 1), ("queue", 0), ("kept_caches", 0), ("cache_mb", 0), ("max_body_kb", 1)):
            check_option(name, getattr(self, name), Integral, at_least(low), f"an integer of at least {low}")
        check_option("port", self.port, Integral, lambda n: 0 <= n <= 65535, "a number from 0 (any free one) to 65535")
        for name in ("timeout", "grace"):
            check_option(name, getattr(self, name), Real, lambda s: 0 < s < 1e9, "a number of seconds above 0")
        if self.max_tokens is not None:
            check_option("max_tokens", self.max_tokens, Integral, at_least(1), "an integer of at least 1")
        if self.name is not None and not (check_text("name", self.name).strip() and self.name.isprintable()):
            raise OptionError(f"name: expected a name for the model, in printable characters, got {self.name!r}")
        if self.key is not None:
            check_key("key", self.key)


def check_key(name: str, key: str) -> str:
    """The key, if HTTP can carry it as it is.

    Raises:
        OptionError: if it is empty, or holds other characters than visible ones of ASCII. The message does not show it.
    """
    if not key:
        raise OptionError(f"{name}: expected a key, found an empty text: unset it to serve without one, or set a key")
    if not all("!" <= character <= "~" for character in key):
        raise OptionError(f"{name}: expected visible ASCII characters without spaces, found another one: choose another key")
    return key


def key_of_environment() -> str | None:
    """The key in FAIRY2I_API_KEY; None if that is not set.

    Raises:
        OptionError: if it is no key.
    """
    key = os.environ.get(KEY_VARIABLE)
    return None if key is None else check_key(KEY_VARIABLE, key)


def check_packages() -> None:
    """Raise a :class:`LibraryError` that names the packages of the extra ``serve`` that are missing."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise LibraryError(
            f"fairy2i serve needs packages that are not there: {', '.join(missing)}; run: pip install './runtime[serve]' "
            f"in a checkout, or pip install {' '.join(name.replace('_', '-') for name in missing)}"
        )
