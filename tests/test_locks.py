"""The versions and hashes that CI installs its tools by are those that pyproject.toml asks for (make lock writes them)."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from conftest import ROOT

LOCKS = sorted((ROOT / ".ci" / "locks").glob("*.txt"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", ["fuzz", "lint", "release"])
def test_the_lock_of_an_extra_is_current(name: str) -> None:
    text = (ROOT / ".ci" / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[\w.-]+==)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    pinned: dict[str, set[str]] = {}
    for entry in entries:
        found = re.match(r"([\w.-]+)==([^\s;]+)", entry)
        assert found, entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
        pinned.setdefault(found[1], set()).add(found[2])
    for wanted in map(Requirement, EXTRAS[name]):
        assert any(wanted.specifier.contains(version) for version in pinned[wanted.name]), f"{wanted}: run make lock"


def test_every_lock_is_one_of_an_extra_and_used() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {path.stem for path in LOCKS} == {"fuzz", "lint", "release"}
    for path in LOCKS:
        assert f"--require-hashes -r .ci/locks/{path.name}" in makefile
