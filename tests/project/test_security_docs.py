"""SECURITY.md and docs/security.md name tests and limits that exist, with the values that they have."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from fairy2i_export.codes import choices, layout

sys.path.insert(0, str(ROOT / "scripts"))
from security_limits import BEGIN, END, PAGE, limits, page

THREATS = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in THREATS.splitlines()
    if line.startswith("| ") and "::" in line
]


def test_the_limits_are_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == page(), "run python scripts/security_limits.py"


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1] if isinstance(row, list) else None)
def test_every_threat_has_tests_and_limits_that_exist(row: list[str]) -> None:
    _, what, promised, bounds, kept = row
    assert what
    assert promised
    for name in re.findall("`([^`]+)`", bounds):
        assert name in limits()
    tests = re.findall("`([^`]+)`", kept)
    assert tests
    for name in tests:
        file, _, function = name.partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert function in functions_of(path), name


def test_the_library_has_the_same_limits() -> None:
    header = (ROOT / "custom_ops" / "src" / "base" / "layout.h").read_text(encoding="utf-8")
    found = dict(re.findall(r"#define F2I_(MAX_\w+) (\d+)", header))
    assert (int(found["MAX_FEATURES"]), int(found["MAX_STAGES"])) == (layout.MAX_FEATURES, choices.MAX_STAGES)
    assert len(ROWS) > 15
