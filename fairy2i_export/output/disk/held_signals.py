"""Steps that a signal must not divide: it is heeded after them, or where the caller says that it may be."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class HeldSignals:
    """Signals that wait, for which the process has handlers in Python; one that ends it outright, or is ignored, does as before."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._holding = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """In this part of the steps signals are heeded at once, and those that waited at its beginning."""
        self._holding = False
        try:
            self._heed()
            yield
        finally:
            self._holding = True

    def _take(self) -> None:
        for name in _NAMES:
            number = getattr(signal, name, None)
            handler = None if number is None else signal.getsignal(number)
            if number is None or not callable(handler):
                continue
            self._handlers[number] = handler
            try:
                signal.signal(number, self._hear)
            except ValueError:  # not the main thread, where Python calls handlers
                del self._handlers[number]
                break
        self._holding = True

    def _give_back(self) -> None:
        try:
            self._holding = False
            self._heed()
        finally:  # a signal that comes in here finds its handler too, if through this object
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._hear:  # nobody has put another in its place meanwhile
                    signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._waiting.append((number, frame))
        else:
            self._handlers[number](number, frame)

    def _heed(self) -> None:
        """Call the handler of what came first; it ends what goes on here, and with it the others."""
        if self._waiting:
            number, frame = self._waiting[0]
            self._waiting.clear()
            self._handlers[number](number, frame)


@contextmanager
def signals_held() -> Iterator[HeldSignals]:
    """Steps during which signals wait; they are heeded at the end, also of steps that fail."""
    held = HeldSignals()
    try:
        held._take()
        yield held
    finally:
        held._give_back()
