"""What holds from a program's first moment on, before its long imports: signals give one line, closed streams are no surprise.

Imports next to nothing, for an interruption that comes before it can be heard ends in a traceback of Python.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # typing itself takes a while to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

USER_ERROR = 2
UNTOUCHED = "interrupted: nothing was written"
_IMPORTING = "<frozen importlib._bootstrap>"  # file of the frames of an import
_AGAIN = 0.05  # seconds until a signal that cannot be heeded comes once more
_late: list[int] = []  # signals that came where they cannot be heeded; the first one counts
_arrivals: list[int] = []  # a pipe
_heard: set[int] = set()
_owed: dict[int, int] = {}  # signal: the one to heed in its place
_ENDING = ("SIGTERM", "SIGHUP")  # beside SIGINT; Windows has no SIGHUP


class Terminated(SystemExit):
    """The system asked the program to end. Code that cleans up after SystemExit does so after this; notes are for the user."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def start(target: str, arguments: Sequence[str] | None = None) -> int:
    """Import a program and run it.

    Args:
        target: MODULE:FUNCTION; the function takes ``arguments`` and returns the exit code.
        arguments: default: those of the process, which is then the program's own: its streams are guarded
            (streams.py), and nothing more is said when a signal comes after its end.

    Returns:
        The exit code: that of the function, or 128 + N after signal N.
    """
    alone = arguments is None
    before = _hear(_end_at_once)
    try:
        if alone and (problem := _open_streams()):
            say(problem)
            return USER_ERROR
        from importlib import import_module

        module, _, function = target.partition(":")
        run: Any = getattr(import_module(module), function)
        if alone:
            from fairy2i_runtime.commands.process.streams import guard_streams

            guard_streams()
            sys.unraisablehook = _not_lost
        try:
            _late.clear()
            _hear(_stop, list(before))
            if alone and os.name == "posix":
                _note_arrivals()
            code: int = run(arguments)
        except (KeyboardInterrupt, Terminated) as stop:
            code = interrupted(stop)
            if alone:
                _leave_threads(code)
        return code
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), _end_at_last if alone else handler)
        exec(
            ""
        )  # CPython remembers a KeyboardInterrupt that left exec(), and would end with the signal in place of the code


def _leave_threads(code: int) -> None:
    """End at once if a thread is at work that Python would wait for, such as a download."""
    import threading

    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)


def interrupted(stop: BaseException) -> int:
    """Say in one line what is kept, as noted on the exception (add_note) by whoever knows it; returns the exit code.

    A note that is empty stands for a line that has been printed already. If another signal came while what the first one
    ends was put in order, the first one counts.
    """
    stops = _chain(stop)
    stop = stops[-1]
    notes = [note for each in reversed(stops) for note in getattr(each, "__notes__", ())]
    notes = notes or [_done_all_the_same() or UNTOUCHED]
    line = next((note for note in notes if note), "")
    if line:
        say(("\n" if sys.stderr.isatty() else "") + line)  # a terminal shows ^C where the cursor was
    return int(stop.code or 0) if isinstance(stop, Terminated) else 128 + signal.SIGINT


def _done_all_the_same() -> str:
    from fairy2i_runtime.commands.process.streams import Output

    return Output.done and f"interrupted: {Output.done[0].lower()}{Output.done[1:]}"


def _chain(stop: BaseException) -> list[BaseException]:
    """An interruption and those during whose handling it came, the earliest last."""
    found, seen = [stop], stop
    while (context := seen.__context__) is not None:
        seen = context
        if isinstance(seen, (KeyboardInterrupt, Terminated)):
            found.append(seen)
    return found


def say(text: str) -> None:
    """Print a line to standard error; whether somebody listens does not matter."""
    try:  # noqa: SIM105  # contextlib is not imported yet
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def _hear(handler: Any, names: Sequence[str] = ("SIGINT", *_ENDING)) -> dict[str, Any]:
    """Install a handler for signals that are not ignored (as by nohup); returns the former ones by the signal's name."""
    before: dict[str, Any] = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
            continue
        try:
            before[name] = signal.signal(number, handler)
        except ValueError:  # not the main thread: signals are not its business
            break
        _heard.add(number)
    return before


def _note_arrivals() -> None:
    """Have the system's signals noted in the order in which they come: Python calls handlers by number, the lowest first."""
    _arrivals.extend(os.pipe())
    for end in _arrivals:
        os.set_blocking(end, False)
    signal.set_wakeup_fd(_arrivals[1], warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget_arrivals)


def _forget_arrivals() -> None:
    """In a process that was forked: its signals are not this one's."""
    signal.set_wakeup_fd(-1)
    _arrivals.clear()


def first_of(number: int) -> int:
    """The signal that a handler is to heed when Python calls it for ``number``: of several that wait, the one that came first."""
    if number in _owed:
        return _owed.pop(number)
    try:
        came = list(os.read(_arrivals[0], 4096)) if _arrivals else []
    except BlockingIOError:
        came = []
    first = next((each for each in came if each in _heard), number)
    if number not in came or first == number:
        return number
    _owed[first] = number  # the handler that is called for it next
    return first


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """While modules are imported: nothing has been done, and an exception could end up anywhere in them."""
    try:
        os.write(2, f"{UNTOUCHED}\n".encode())
    finally:
        os._exit(128 + number)


def _end_at_last(number: int, frame: FrameType | None) -> None:
    """While Python takes itself down: everything is done, and said."""
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    number = first_of(number)
    if _imports():
        _come_again(number)
        return
    if _late:
        number = _late[0]
        _late.clear()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _imports() -> bool:
    """Whether the program is in the middle of an import.

    Modules in C end the process if an exception comes out of what they call meanwhile, or drop it and stay half imported.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not start.__code__:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _come_again(number: int) -> None:
    """Have a signal come once more, in a moment."""
    from threading import Timer

    def send() -> None:
        from _thread import interrupt_main

        if _late:  # not heeded meanwhile
            interrupt_main(signal.Signals(_late[0]))

    _late.append(number)
    again = Timer(_AGAIN, send)
    again.daemon = True
    again.start()


def _not_lost(info: Any) -> None:
    """A signal that came while Python ran a finalizer or a callback, which drop all exceptions."""
    if isinstance(info.exc_value, (KeyboardInterrupt, Terminated)):
        _come_again(signal.SIGINT if isinstance(info.exc_value, KeyboardInterrupt) else int(info.exc_value.code or 0) - 128)
    else:
        sys.__unraisablehook__(info)


def _open_streams() -> str:
    """Open what the process was started without, so that no file gets its number; the message if it cannot do without it."""
    closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    if any(closed):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # each takes the first number that is free
            pass
        os.close(number)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    return "error: standard output is closed, expected somewhere to print to; > /dev/null drops it" if closed[1] else ""
