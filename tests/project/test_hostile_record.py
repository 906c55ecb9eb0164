"""The record of hostile input (scripts/hostile_record.py): what counts as what, and a table of tests that exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import hostile_record as record
from test_security_docs import functions_of

ONE_OF_EACH = """
import ctypes, time
import pytest
from hypothesis import given, settings, strategies as st
from fairy2i_export.errors import Fairy2iError

def test_refused():
    try:
        raise Fairy2iError("as a command catches it")
    except Fairy2iError:
        pass

def test_refused_by_another_library():
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no")

def test_right():
    assert True

@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.booleans(), st.integers())
def test_drawn(refuse, number):
    if refuse:
        with pytest.raises(Fairy2iError):
            raise Fairy2iError("x")

def test_wrong():
    assert 1 == 2

def test_nothing_came():
    with pytest.raises(Fairy2iError):
        pass

def test_traceback():
    raise KeyError("x")

@pytest.mark.parametrize("value", [1, 2])
def test_left_out(value):
    pytest.skip("not here")
"""
HANG = """
def test_hang():
    while True:
        pass
"""
CRASH = """
import os, signal
def test_crash():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_counts_as_what(tmp_path: Path) -> None:
    for name, text in (("one", ONE_OF_EACH), ("hang", HANG), ("crash", CRASH)):
        (tmp_path / f"test_{name}.py").write_text(text)
    outcomes, bad = record.count(["test_one.py"], tmp_path)
    drawn = outcomes["refused"] + outcomes["right"] - 3
    assert drawn == 50
    assert outcomes["refused"] > 10
    assert outcomes["right"] > 10
    assert {kind: outcomes[kind] for kind in record.OUTCOMES[2:]} == {"wrong": 2, "traceback": 1, "crash": 0, "hang": 0}
    assert len(bad) == 3
    assert record.count(["test_hang.py"], tmp_path, seconds=2)[0] == {"hang": 1}
    assert record.count(["test_crash.py"], tmp_path)[0] == {"crash": 1}
    with pytest.raises(SystemExit, match="test_none"):
        record.count(["test_none.py"], tmp_path)


@pytest.mark.parametrize("target", [target for targets in record.ROWS.values() for target in targets])
def test_rows_have_tests_that_exist(target: str) -> None:
    file, _, function = target.partition("::")
    path = ROOT / "tests" / file
    assert path.exists()
    if function:
        assert function in functions_of(path)


def test_the_table_has_the_rows_and_no_failure() -> None:
    text = record.PAGE.read_text(encoding="utf-8").partition(record.BEGIN)[2].partition(record.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == [*record.ROWS, "together"]
    numbers = [[int(re.sub(",", "", cell)) for cell in row[1:]] for row in rows]
    assert all(tried == sum(kinds) > 0 and not any(kinds[2:]) for tried, *kinds in numbers)
    assert numbers[-1] == [sum(column) for column in zip(*numbers[:-1], strict=True)]
