"""A signal while a file is opened is that signal, and no error of a descriptor that two have closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytest

from fairy2i_export.output.disk import own_files
from fairy2i_runtime import regular_file

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux lists them")
WATCHED = {function.__code__.co_filename for function in (os.fdopen, own_files.open_own, regular_file.open_regular)}
OPENED: dict[str, Callable[[Path], BinaryIO]] = {
    "to read": lambda path: regular_file.open_regular(path, 100, "a thing"),
    "to write": own_files.open_own,
}


class Stop(BaseException):
    pass


def stopped(work: Callable[[], BinaryIO], at: int) -> bool:
    """Whether an exception came before the ``at``-th instruction of Python in what opens it; False if there are not as many."""
    count = 0

    def traced(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "opcode":
            count += 1
            if count == at:
                raise Stop
        return traced

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        frame.f_trace_opcodes = True
        return traced

    sys.settrace(called)
    try:
        work().close()
    except Stop:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("how", OPENED)
def test_a_signal_at_any_instruction(how: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    before, at = set(os.listdir("/proc/self/fd")), 1
    lost = 0
    while stopped(lambda: OPENED[how](path), at):
        at += 1
        for name in set(os.listdir("/proc/self/fd")) - before:
            if os.path.exists(f"/proc/self/fd/{name}"):  # not that of the listing itself
                lost += 1
                os.close(int(name))
    assert at > 40
    assert lost <= 1  # between the system's answer and the next instruction, a descriptor is nobody's
