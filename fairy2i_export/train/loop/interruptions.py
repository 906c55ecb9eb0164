"""What the system refuses while a run trains: full disks, files and connections that are gone, as one message each."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairy2i_export.errors import OutputError, TrainingError
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.train.loop.checkpoint_guard import good_checkpoints, what_is_kept

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def stops_explained(output: Path, checkpoints: Path) -> Iterator[None]:
    """Turn an OSError of anything in a run (texts, logs, libraries) into an error for the user; note what an interruption leaves.

    Args:
        output: the folder of the run.
        checkpoints: its checkpoints.

    Raises:
        OutputError: there is no room on a disk.
        TrainingError: any other.
    """
    hook = threading.excepthook

    def quiet(stopped: Any) -> None:
        # TensorBoard's thread: what stopped it is raised again in the main thread by the next log
        if not isinstance(stopped.exc_value, OSError):
            hook(stopped)

    threading.excepthook = quiet
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        begins = "continues from there" if good_checkpoints(checkpoints) else "begins anew"
        stop.add_note(f"interrupted: {what_is_kept(checkpoints)}; the same command {begins}")
        raise
    except OSError as error:
        reason = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
        what = f"{error.filename}: {reason}" if isinstance(error.filename, str) else reason
        if error.errno in _NO_ROOM:
            free = human_bytes(shutil.disk_usage(output).free)
            raise OutputError(
                f"{output}: training stopped: {what} ({free} free); {what_is_kept(checkpoints)}. Make room, then run the same "
                "command again to continue"
            ) from error
        raise TrainingError(
            f"{output}: training stopped: {what}; {what_is_kept(checkpoints)}. The same command continues from there once the "
            "cause is gone"
        ) from error
    finally:
        threading.excepthook = hook
