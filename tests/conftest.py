"""Shared helpers of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # oracle.py is imported by several test files

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests decide themselves which kernel runs."""
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    monkeypatch.delenv("FAIRY2I_ISA", raising=False)
