"""The process in which ONNX Runtime opens models on trial: it dies of some, and then only that process does.

It is started for the first model and kept, for starting it takes longer than opening most models.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fairy2i_runtime.ops.library import LIBRARY_VARIABLE
from fairy2i_runtime.text.sandbox.process import is_apart

_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from fairy2i_export.output.contract.trial import serve; serve()"
)


class _Process:
    """A running process; one model at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name != "nt",  # Ctrl-C is for the program, not for it
            creationflags=flags,
        )
        self._send([str(Path(path).absolute()) for path in sys.path])

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None  # a pipe
        with suppress(OSError):  # it is gone, which the answer tells
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def ask(self, path: Path) -> str | None:
        """What ONNX Runtime says against a model, or None: the process has died."""
        self._send([str(path), library_of_trials()])
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        return str(json.loads(line)) if line.endswith(b"\n") else None

    def end(self) -> str:
        """End it; returns what it has died of, if it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        code = self._process.wait()
        with suppress(ValueError):
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"signal {-code}"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.end()


def library_of_trials() -> str | None:
    """Which operator library the environment names by now."""
    return os.environ.get(LIBRARY_VARIABLE)


_lock = threading.Lock()
_running: _Process | None = None


def refusal_of(path: Path, here: Callable[[Path], str]) -> str:
    """What ONNX Runtime says against a model; empty if it opens it.

    Args:
        path: the model.
        here: opens it in this process, where there can be no other.
    """
    global _running
    if not is_apart():
        return here(path)
    with _lock:
        if _running is None or _running.owner != os.getpid():  # none yet, or it belongs to the process this one is a copy of
            try:
                _running = _Process()
            except OSError:  # the system gives no further process
                return here(path)
        process = _running
        try:
            found = process.ask(path.absolute())
        except BaseException:  # an interruption: the answer to come would be taken for the next one
            _running = None
            process.kill()
            raise
        if found is not None:
            return found
        _running = None
        return f"ONNX Runtime died while it opened {path.name} ({process.end()})"


def answer(here: Callable[[Path], str]) -> None:
    """In the process: open the models of standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        path, library = json.loads(line)
        os.environ.pop(LIBRARY_VARIABLE, None)
        if library is not None:
            os.environ[LIBRARY_VARIABLE] = library
        answers.write(json.dumps(here(Path(path))).encode() + b"\n")
        answers.flush()
