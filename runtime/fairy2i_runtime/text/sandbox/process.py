"""The process in which chat templates run, with limits of time and memory.

Jinja's sandbox keeps a template from objects that are not its own, but not from multiplying texts or nesting loops until
memory or patience ends, and no list of forbidden operations would be complete. A process of its own can be bounded as a whole
and ended from outside. It is started when a template runs for the first time and kept; one serves all models.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairy2i_runtime.text.sandbox import program

SECONDS = 1.0  # of computing, for a conversation of any usual length: hundreds of times the usual
SECONDS_PER_MB = 1.0  # more for long ones
SECONDS_TO_COMPILE = 50.0  # per MB of template: 20 KB, the longest known, take 1 s on the slowest processors
_MOST_TO_COMPILE = 2.0
_WAIT = 4  # times as much until it is given up, where the machine is busy or the system does not count
_START_SECONDS = 60
_MOST_ANSWER = 12 * program.MOST_TEXT  # JSON writes a character as up to 12
_BEGIN = "import json, runpy, sys; sys.path[:], p = json.loads(sys.stdin.buffer.readline()); runpy.run_path(p)['serve']()"


class TemplateLimitError(Exception):
    """A template took more time or memory than it may; worded to follow its name."""


class _Process:
    """A running process; one request at a time."""

    def __init__(self) -> None:
        flags: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the program, not for it
        if os.name == "nt":
            flags = {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **flags,
        )
        where = json.dumps([sys.path, program.__file__]).encode() + b"\n"
        if self._exchange(where, _START_SECONDS, framed=False) is None:
            raise OSError(f"{sys.executable} does not start a process for chat templates")

    def ask(self, request: tuple[Any, ...], seconds: float) -> dict[str, Any] | None:
        """The answer to a request; None if it took too long or too much: the process is gone then."""
        answer = self._exchange(pickle.dumps((seconds, *request)), seconds * _WAIT)
        return None if answer is None else dict(json.loads(answer))

    def _exchange(self, message: bytes, seconds: float, *, framed: bool = True) -> bytes | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # they are pipes
        assert stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        answer: Any = None
        try:
            if framed:
                program.send(stdin, message)  # type: ignore[arg-type]
            else:
                stdin.write(message)
                stdin.flush()
            answer = program.receive(stdout, _MOST_ANSWER)  # type: ignore[arg-type]
        except OSError:  # it is gone
            pass
        finally:  # also if somebody interrupts the wait: the answer to come would be taken for the next one
            timer.cancel()
            if answer is None:
                self.end()
        return answer if isinstance(answer, bytes) else None

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # of what was not written yet
                    pipe.close()


_lock = threading.Lock()
_running: _Process | None = None


def run(task: str, source: str, values: Mapping[str, Any] | None = None) -> Any:
    """Let a template run.

    Args:
        task: ``render`` for the text it makes of ``values``, ``variables`` for the names it asks for, ``compile`` to see
            whether it can be compiled.
        source: the template.
        values: by name, of Python's own types.

    Raises:
        ValueError: what is wrong with the template or what it says, in words.
        TemplateLimitError: if it takes too long or too much memory.
    """
    global _running
    request = (task, source, dict(values or {}))
    if not is_apart():
        return _value(program.answer(*request))
    compiling = min(_MOST_TO_COMPILE, SECONDS_TO_COMPILE * len(source) / 1e6)
    seconds = SECONDS + SECONDS_PER_MB * len(pickle.dumps(request)) / 1e6 + compiling
    with _lock:
        if _running is None or _running.owner != os.getpid():  # none yet, or it belongs to the process this one is a copy of
            _running = _Process()
        try:
            answer = _running.ask(request, seconds)
        except BaseException:
            _running = None
            raise
        if answer is None:
            _running = None
    if answer is None:
        raise TemplateLimitError(
            f"takes more than {seconds:.0f} s of computing or {program.MEMORY_BYTES >> 20} MB of memory; repair the template, or "
            "take it from the model's source"
        )
    return _value(answer)


def is_apart() -> bool:
    """Whether templates run in a process of their own: not where Python cannot start one, or is part of another program."""
    started_by_python = bool(sys.executable) and not getattr(sys, "frozen", False)
    return started_by_python and sys.platform not in ("emscripten", "wasi", "ios") and Path(program.__file__).is_file()


def _value(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    return answer["value"]
