"""Stop a run of the model from outside: another thread, or a signal handler."""

from __future__ import annotations

import onnxruntime as ort


class Interrupted(Exception):  # no error: somebody asked for it
    """A run was stopped, or not begun, because somebody asked for that."""


class Interruption:
    """A request to stop that the runs of one generation heed.

    onnxruntime looks at it before every node of the graph, so that even the run of a long prompt ends within one layer.

    Attributes:
        run_options: for the runs that shall heed it.
        requested: whether it was asked for.
    """

    def __init__(self) -> None:
        self.run_options = ort.RunOptions()
        self.run_options.log_severity_level = 4  # a run that is stopped on purpose is nothing to log
        self.requested = False

    def request(self) -> None:
        """Ask for it; returns at once. May be called by any thread, and more than once."""
        self.requested = True
        self.run_options.terminate = True

    def check(self) -> None:
        """Raise :class:`Interrupted` if it was asked for."""
        if self.requested:
            raise Interrupted
