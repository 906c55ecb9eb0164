"""What CI installs comes by version and hash: the locks are those that pyproject.toml asks for (make lock), and all take them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import ROOT

LOCKS = sorted((ROOT / ".ci" / "locks").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS, GROUPS = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
LOCKED_EXTRAS = {"fuzz", "lint", "release"}
SCRIPTS = [
    ROOT / "Makefile",
    *(path for path in sorted((ROOT / ".ci").iterdir()) if path.is_file() and path.suffix != ".py"),
]
# what is meant to be the newest release, as users get it (docs/security.md): a word of the line -> of what
UNLOCKED = {
    "Makefile": ("$(PIP) .\n", "$(PIP) $(TORCH)\n", "$(PIP) -r $(VENV)/", "$(PIP) gguf sentencepiece\n"),
    "arm_root.sh": ("$wanted",),  # onnxruntime as this machine has it; the rest is locked
    "hosts": ("onnxruntime-genai\n",),
    "serve": ("$wanted\n",),
    "wheels": ('"${@:2}"\n', '"$runtime_arm"\n', "--no-build-isolation"),  # our own wheels, and what they depend on
}


@pytest.mark.parametrize("name", [path.stem for path in LOCKS])
def test_a_lock_is_current(name: str) -> None:
    text = (ROOT / ".ci" / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[\w.-]+==)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    pinned: dict[str, set[str]] = {}
    for entry in entries:
        found = re.match(r"([\w.-]+)==([^\s;]+)", entry)
        assert found, entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
        pinned.setdefault(found[1], set()).add(found[2])
    for wanted in map(Requirement, {**EXTRAS, **GROUPS}[name]):
        assert any(wanted.specifier.contains(version) for version in pinned[wanted.name]), f"{wanted}: run make lock"


def test_every_lock_is_asked_for_and_used() -> None:
    names = {path.stem for path in LOCKS}
    assert names == LOCKED_EXTRAS | set(GROUPS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^LOCKS := (.+)$", makefile, flags=re.M)[0].split()) == names
    texts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    for name in names:
        assert f"--require-hashes -r .ci/locks/{name}.txt" in texts or re.search(
            rf"^\s*locked {name}$", texts, flags=re.M
        ), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_nothing_else_is_fetched_without_a_hash(path: Path) -> None:
    text = re.sub(r" *\\\n\s*", " ", path.read_text(encoding="utf-8"))  # whole commands
    fetched = [f"{line}\n" for line in text.splitlines() if re.search(r"-m pip (install|download|wheel)|\$\(PIP\)", line)]
    for line in fetched:
        if "--require-hashes -r" not in line and "PIP     :=" not in line:
            assert any(word in line for word in UNLOCKED.get(path.name, ())), line
    for word in UNLOCKED.get(path.name, ()):
        assert any(word in line for line in fetched), f"{word}: no longer there"
    assert not re.search(r"\b(wget|urlretrieve)\b", text)
    assert all(
        '"$address' in line for line in text.splitlines() if re.search(r"\bcurl -", line)
    )  # the server that is tested
    assert not re.search(r"npm(\[@\]\}\")? (install|i|exec)\b|\bnpx\b", text)


def test_packages_of_the_page_have_hashes() -> None:
    packages = json.loads((ROOT / "examples" / "web" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert len(packages) > 10
    for name, package in packages.items():
        assert not name or re.match(r"sha512-[\w+/]{86}==", package["integrity"]), name
    assert '"${npm[@]}" ci\n' in (ROOT / ".ci" / "web").read_text(
        encoding="utf-8"
    )  # takes the versions and checks the hashes
