"""Ctrl-C in the middle of a run of the model."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fairy2i_runtime.commands.process.startup import Terminated


@contextmanager
def printing_text() -> Iterator[None]:
    """An interruption does not say that nothing was written: text was, to standard output."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note("interrupted")
        raise


@contextmanager
def heeding_ctrl_c(cancel: Callable[[], object]) -> Iterator[None]:
    """Call ``cancel`` as soon as Ctrl-C arrives.

    Python raises KeyboardInterrupt only when onnxruntime comes back, and reading a part of a long prompt may take it half a
    minute on a small machine. The operating system's signal is seen by another thread, which can ask for an end of that run.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while signals := reader.recv(16):
            if signal.SIGINT in signals:
                cancel()

    watcher = threading.Thread(target=watch, name="ctrl-c", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # the watcher reads the end
        watcher.join()
        reader.close()
