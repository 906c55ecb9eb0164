"""Shared helpers of the tests."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parent / "helpers"
sys.path[:0] = [str(HELPERS), str(HELPERS / "models"), str(HELPERS / "programs")]

ROOT = Path(__file__).resolve().parent.parent
# before torch is loaded, here and in processes that tests start: its threads sleep while they wait for each other. Spinning takes
# most of the processor time of small models, the more the busier the machine is, and changes no result
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def heed_interrupts() -> None:
    """To run in a child before it starts: who runs the tests in the background may have SIGINT ignored, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Call ``work`` with the numbers up to ``count``, each in a thread of its own, and wait for all of them."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests decide themselves which kernel runs."""
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    monkeypatch.delenv("FAIRY2I_ISA", raising=False)
    monkeypatch.setenv("FAIRY2I_TUNING", " ")  # no settings: not those either that somebody measured on this machine


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model that chats, for tests that leave it as it is."""
    from runtime_models import chat_folder

    return chat_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def own_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is typed in a test goes into no history but the test's."""
    monkeypatch.setenv("FAIRY2I_HISTORY", str(tmp_path / "history"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """onnx_ir's own log: what it says is no part of the message."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
