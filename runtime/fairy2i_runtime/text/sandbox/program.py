"""Jinja as chat templates know it, and the loop of the process that runs them. Needs nothing but Jinja, to start soon.

The process reads requests from standard input and writes answers to standard output, each a length in 8 bytes and the bytes.
Requests come from the program that started it and are pickled; answers are JSON, because a template had a hand in them.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# what Jinja, and Python where it runs what Jinja makes, raise for damaged or failing templates
FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, AssertionError,
)  # fmt: skip
MEMORY_BYTES = 1 << 29  # of addresses, besides what Python takes
MOST_TEXT = 1 << 24  # characters of a conversation written out: more tokens than any context
_KEPT = 8  # compiled templates


class _GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what a model is trained on; rendering shows the inside."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)  # variables set inside stay there

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _PublicNamespace(Namespace):
    """Jinja's ``namespace()``, which lets templates store attributes, without underscore names."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"chat templates cannot store the attribute {name!r} in a namespace")
        super().__setitem__(name, value)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja's immutable sandbox with what transformers adds to it."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    made.globals["namespace"] = _namespace
    return made


def compiled(source: str) -> jinja2.Template:
    """A template, ready to run; errors as :func:`render`."""
    if source not in _compiled:
        if len(_compiled) >= _KEPT:
            _compiled.clear()
        _compiled[source] = environment().from_string(source)
    return _compiled[source]


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of values.

    Raises:
        Exception: one of FAILURES.
    """
    text = compiled(source).render(values)
    if len(text) > MOST_TEXT:
        raise ValueError(f"the text has {len(text):,} characters, more than {MOST_TEXT:,}")
    text.encode("utf-8")  # half characters are no text
    return text


def variables(source: str) -> list[str]:
    """Names that a template uses and does not set itself, those of the template language among them; errors as :func:`render`."""
    compiled(source)  # what can be compiled can be parsed
    return sorted(meta.find_undeclared_variables(environment().parse(source)))


def answer(task: str, source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a request asks for: ``{"value": ...}``, or ``{"error": ...}`` with the reason in words."""
    try:
        if task == "compile":
            return {"value": bool(compiled(source))}
        return {"value": render(source, values) if task == "render" else variables(source)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"syntax error in line {error.lineno}: {error.message}"}
    except SyntaxError as error:  # Python's own limits: too many nested loops, too deep
        return {"error": f"cannot be compiled: {error.msg}"}
    except MemoryError:
        return {"error": f"needs more than {MEMORY_BYTES >> 20} MB of memory"}
    except FAILURES as error:
        return {"error": str(error) or type(error).__name__}


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    _limit_memory()
    send(answers, b"{}")  # ready
    while (data := receive(requests)) is not None:
        seconds, *request = pickle.loads(data)
        _limit_time(seconds)
        try:
            reply = json.dumps(answer(*request)).encode()
        except MemoryError:
            reply = b'{"error": "needs more memory than it may have"}'
        _limit_time(0)
        send(answers, reply)


def send(pipe: BinaryIO, data: bytes) -> None:
    """Write a message."""
    pipe.write(len(data).to_bytes(8, "little"))
    pipe.write(data)
    pipe.flush()


def receive(pipe: BinaryIO, most: int = 1 << 40) -> bytes | None:
    """The next message; None if there is none, or it is longer than ``most`` bytes."""
    head = pipe.read(8)
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > most:
        return None
    data = pipe.read(size)
    return data if len(data) == size else None


def _limit_memory() -> None:
    """Bound the addresses of this process, where the system does that: not on Windows, and macOS does not enforce it."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = taken + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """End the process once it has computed for so long, in user and system time; 0: no limit. Windows: left to the caller."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process


_compiled: dict[str, jinja2.Template] = {}


def _namespace(*mappings: Any, **values: Any) -> Namespace:
    namespace = _PublicNamespace()
    for name, value in dict(*mappings, **values).items():
        namespace[name] = value
    return namespace


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
