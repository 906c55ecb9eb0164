"""Shared helpers of the tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # oracle.py is imported by several test files

ROOT = Path(__file__).resolve().parent.parent


def heed_interrupts() -> None:
    """To run in a child before it starts: who runs the tests in the background may have SIGINT ignored, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests decide themselves which kernel runs."""
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    monkeypatch.delenv("FAIRY2I_ISA", raising=False)
