"""The standard streams of a program of its own: what goes wrong with them is one message, now and when Python ends."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from fairy2i_runtime.errors import Fairy2iRuntimeError


class StreamError(Fairy2iRuntimeError):
    """Standard input or output cannot be used."""


class _Guarded(io.TextIOWrapper):
    """A stream to print to. After its first failure, what is still to come goes nowhere, so that nothing fails at exit."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        with suppress(OSError):
            super().flush()  # what is pending


class Output(_Guarded):
    """Standard output: a failure ends the command, at the latest with its end (:func:`check_output`)."""

    failure: Exception | None = None
    done = ""  # what is finished all the same, a sentence

    def _failed(self, error: OSError) -> None:
        super()._failed(error)
        self.failure = error  # a broken pipe: the reader has seen enough
        if not isinstance(error, BrokenPipeError):
            self.failure = StreamError(
                f"standard output: cannot be written: {error.strerror or error}; not all was printed. Make room, or print "
                f"elsewhere{Output.done and f'. {Output.done}'}"
            )
        raise self.failure from None


class Messages(_Guarded):
    """Standard error: who does not want to hear has the work done all the same."""


class ClosedInput(io.TextIOBase):
    """Standard input of a process that was started without one."""

    @property
    def buffer(self) -> NoReturn:
        self._refuse()

    def read(self, size: int | None = -1, /) -> NoReturn:
        self._refuse()

    def readline(self, size: int = -1, /) -> NoReturn:  # type: ignore[override]
        self._refuse()

    def readable(self) -> bool:
        return True

    def _refuse(self) -> NoReturn:
        raise StreamError("standard input is closed, expected a text to read there; < /dev/null gives an empty one")


def note_done(text: str) -> None:
    """Remember that the work itself is finished, for the message about a standard output that fails, or about an interruption."""
    Output.done = text


def check_output() -> None:
    """Print what is pending on standard output.

    Raises:
        StreamError: something could not be printed.
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None:
        raise failure


def guard_streams() -> None:
    """Replace the standard streams of this process by guarded ones."""
    streams: dict[str, Any] = {"stdout": _guarded(Output, sys.stdout), "stderr": _guarded(Messages, sys.stderr)}
    if sys.stdin is None:
        streams["stdin"] = ClosedInput()
    for name, stream in streams.items():
        vars(sys)[name] = vars(sys)[f"__{name}__"] = stream


def _guarded(kind: type[_Guarded], stream: Any) -> Any:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
    return kind(stream.detach(), encoding, "replace", line_buffering=lines, write_through=through)
