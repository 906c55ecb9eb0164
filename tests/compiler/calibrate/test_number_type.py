"""Products are computed in bfloat16 only where that takes clearly less time, whatever instructions the processor has."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # after the check

from fairy2i_export.compile.calibrate import streams

KNOWN = ("avx512_bf16", "amx_bf16", "bf16")


def tried(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float) -> bool:
    """With products that take so long."""
    times = {torch.bfloat16: bfloat16, torch.float32: float32}
    busy = iter([3.0, 1.0, 2.0] * 10)  # what else goes on, for the least of which each type is taken

    def seconds(left: Any, right: Any) -> float:
        assert left.dtype == right.dtype
        return times[left.dtype] * next(busy)

    monkeypatch.setattr(streams, "_seconds", seconds)
    return streams.has_fast_bfloat16.__wrapped__()


@pytest.mark.parametrize("name", KNOWN)
def test_the_time_of_products_decides(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    assert tried(monkeypatch, 0.5, 1.0)
    assert not tried(monkeypatch, 0.95, 1.0)
    assert not tried(monkeypatch, 1.7, 1.0)


def test_nothing_is_tried_where_there_are_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take seconds."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(KNOWN, False), raising=False)
    monkeypatch.setattr(streams, "_seconds", lambda left, right: pytest.fail("tried"))
    assert not streams.has_fast_bfloat16.__wrapped__()
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # of an older version of torch
    assert not streams.has_fast_bfloat16.__wrapped__()


def test_a_process_decides_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = streams.has_fast_bfloat16()
    monkeypatch.setattr(streams, "_seconds", lambda left, right: pytest.fail("tried again"))
    assert streams.has_fast_bfloat16() == before
    with streams.products():
        assert torch.is_autocast_enabled("cpu") == before
