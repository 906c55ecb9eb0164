"""The process in which ONNX Runtime meets models of others: it dies of some, and then only that process does.

It is started for the first call and kept, for starting it takes longer than most calls.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.ops.library import LIBRARY_VARIABLE
from fairy2i_runtime.text.sandbox.process import is_apart

Array = npt.NDArray[np.generic]
Feeds = dict[str, Array]
Answer = str | Array
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from fairy2i_export.output.contract.worker import serve; serve()"
)
_MOST_HEADER = 1 << 20  # bytes of an answer that is no array


class WorkerEnd(Exception):
    """The process ended within a call.

    Attributes:
        late: whether it was ended because the time was over; else it died.
        how: what it died of, such as SIGSEGV.
    """

    def __init__(self, how: str, late: bool) -> None:
        super().__init__(how)
        self.how, self.late = how, late


class _Process:
    """A running process; one call at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._late = False
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name != "nt",  # Ctrl-C is for the program, not for it
            creationflags=flags,
        )
        assert process.stdin is not None  # they are pipes
        assert process.stdout is not None
        self._process, self._requests, self._answers = process, process.stdin, process.stdout
        with suppress(OSError):  # it is gone, which the answer tells
            self._requests.write(json.dumps([str(Path(path).absolute()) for path in sys.path]).encode() + b"\n")

    def ask(
        self, function: Callable[..., Answer], arguments: tuple[Any, ...], feeds: Feeds, seconds: float | None
    ) -> Answer:
        """What the function returns there; ``feeds`` is empty then: an array goes as soon as it is sent.

        Raises:
            WorkerEnd: there is no answer; the process is gone.
        """
        with self._within(seconds):
            with suppress(OSError):
                request = (function, arguments, library_of_worker(), seconds, len(feeds))
                pickle.dump(request, self._requests, protocol=5)
                while feeds:
                    pickle.dump(feeds.popitem(), self._requests, protocol=5)
                self._requests.flush()
            line = self._answers.readline(_MOST_HEADER)
            said = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(said, str):
                return said
            if said is not None:
                array: Array = np.empty(said["shape"], _dtype(said["dtype"]))
                if self._answers.readinto(_bytes(array)) == array.nbytes:  # type: ignore[attr-defined]
                    return array
        raise WorkerEnd(self.end(), self._late)

    @contextmanager
    def _within(self, seconds: float | None) -> Iterator[None]:
        """End the process when the time is over."""
        if seconds is None:
            yield
            return
        timer = threading.Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def end(self) -> str:
        """Wait for its end; returns what it has died of, if it has."""
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # of what was not written yet
                pipe.close()
        code = self._process.wait()
        with suppress(ValueError):
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"signal {-code}"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.end()


def library_of_worker() -> str | None:
    """Which operator library the environment names by now."""
    return os.environ.get(LIBRARY_VARIABLE)


_lock = threading.Lock()
_running: _Process | None = None


def call(
    function: Callable[..., Answer], *arguments: Any, feeds: Feeds | None = None, seconds: float | None = None
) -> Answer:
    """Call a function in the process; in this one where Python can start no other.

    Args:
        function: of a module; returns a text or an array of floats, and raises nothing.
        *arguments: its first arguments.
        feeds: its last one, if it is not None: arrays by name, which go through the pipe one after the other and are taken
            out of it.
        seconds: how long it may take; None: as long as it takes.

    Raises:
        WorkerEnd: the process died, or did not answer in time.
    """
    global _running
    given = {} if feeds is None else feeds

    def here() -> Answer:
        return function(*arguments) if feeds is None else function(*arguments, feeds)

    if not is_apart():
        return here()
    with _lock:
        if _running is None or _running.owner != os.getpid():  # none yet, or it belongs to the process this one is a copy of
            try:
                _running = _Process()
            except OSError:  # the system gives no further process
                return here()
        process = _running
        try:
            return process.ask(function, (arguments, feeds is not None), given, seconds)
        except WorkerEnd:
            _running = None
            raise
        except BaseException:  # an interruption: the answer to come would be taken for the next one
            _running = None
            process.kill()
            raise


def serve() -> None:
    """In the process: make the calls of standard input."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    while True:
        try:
            function, (arguments, fed), library, seconds, count = pickle.load(requests)
        except EOFError:
            return
        feeds = dict(pickle.load(requests) for _ in range(count))
        os.environ.pop(LIBRARY_VARIABLE, None)
        if library is not None:
            os.environ[LIBRARY_VARIABLE] = library
        if seconds is not None and hasattr(signal, "alarm"):
            signal.alarm(math.ceil(seconds) + 1)  # who would end it may be gone by then
        answer = function(*arguments, feeds) if fed else function(*arguments)
        if isinstance(answer, str):
            answers.write(json.dumps(answer).encode() + b"\n")
        else:
            header = {"dtype": answer.dtype.name, "shape": answer.shape}
            answers.write(json.dumps(header).encode() + b"\n")
            answers.write(_bytes(np.ascontiguousarray(answer)))
        answers.flush()
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        del feeds, answer  # they may be large


def _bytes(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
