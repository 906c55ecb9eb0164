"""Answers that are written at the same time take turns at the model, one run each.

A run is a token of an answer, or up to 128 of a prompt. Whoever waited longest is next, so an answer waits for at most one run
of every other one. onnxruntime would take several at once: they would share the session's threads, and each would read all
weights anyway; one at a time has all threads, and the order is ours.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.engine.interruption import Interruption


class Turns:
    """A lock for threads that is handed on in the order in which it was asked for."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # released by the one before, who leaves the lock taken

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class SharedDecoder(Decoder):
    """A decoder whose runs take turns."""

    def __init__(self, session: ort.InferenceSession, context_length: int, *, name: str = "model") -> None:
        super().__init__(session, context_length, name=name)
        self._turns = Turns()

    def run(
        self,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        binding: ort.IOBinding,
        interruption: Interruption | None = None,
        *,
        last: int,
    ) -> npt.NDArray[Any]:
        """As :meth:`Decoder.run`, when it is this run's turn. One that was cancelled meanwhile is not begun."""
        with self._turns:
            return super().run(ids, mask, binding, interruption, last=last)
