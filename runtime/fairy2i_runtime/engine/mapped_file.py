"""The file that a session's weights are mapped from: the system ends a process that reads beyond its end."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from fairy2i_runtime.errors import RunError
from fairy2i_runtime.regular_file import open_regular


class MappedFile:
    """A file that must not become shorter while it is mapped.

    It is looked at before every run, which costs one call of the system. A file that is cut during a run still ends the process:
    only a copy in memory is safe from that.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, so that it is this one that is looked at even if another gets its name.

        Raises:
            OSError: if there is none.
        """
        self._path = path
        file = open_regular(path, 1 << 62, "weights")
        weakref.finalize(self, file.close)
        self._descriptor = file.fileno()
        self._size = os.fstat(self._descriptor).st_size

    def check(self) -> None:
        """Raise RunError if the file has become shorter."""
        size = os.fstat(self._descriptor).st_size
        if size < self._size:
            raise RunError(
                f"{self._path} was cut from {self._size} to {size} bytes while the model is in use: restore it, and load the model "
                "again (load(..., copy=True) keeps the weights in memory)"
            )


def mapped_weights(model: Path) -> MappedFile | None:
    """The file with the weights of a model, None if they are all in the model itself."""
    path = model.with_name(f"{model.name}.data")
    try:
        return MappedFile(path)
    except OSError:  # onnxruntime has opened what there is
        return None
