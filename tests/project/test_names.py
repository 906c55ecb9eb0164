"""Where the project says that it can be had: from its repository, as no package index has it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.compile.result import model_card
from fairy2i_export.errors import install_command, install_hint

# what would fetch the project from an index: its name as an argument of an installer
FROM_AN_INDEX = re.compile(
    r"(?:pip|pipx|uv)3?(?: -\S+)* +(?:install|add|tool install)\b[^\n`]*[ '\"](?:fairy2i[-_](?:export|runtime)|fairy2i)\b"
)


def texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not {".git", ".venv"} & set(path.parts)]
    suffixes = {".md", ".py", ".toml", ".j2", ".html", ".sh", ".txt", ".yml", ".yaml", ".c", ".h", ""}
    own = Path(__file__).name
    return [
        ROOT / name for name in names if Path(name).suffix in suffixes and Path(name).name != own and (ROOT / name).is_file()
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install fairy2i-export", True),
        ("pip install 'fairy2i-export[train]'", True),
        ('python -m pip install -U "fairy2i_export[eval]"', True),
        ("uv add fairy2i-runtime", True),
        ("pip install '.[train]' in a checkout of fairy2i-export's repository", False),
        ("pip install .", False),
        ("fairy2i-export SOURCE", False),
    ],
)
def test_the_pattern_knows_them(text: str, wrong: bool) -> None:
    assert bool(FROM_AN_INDEX.search(text.replace("in a checkout of fairy2i-export's repository", ""))) is wrong


def test_nothing_tells_to_install_from_an_index() -> None:
    files = texts()
    assert len(files) > 200
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace").replace("in a checkout of fairy2i-export's repository", "")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FROM_AN_INDEX.finditer(text)]
    assert not found


def test_the_extras_of_the_messages_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in (ROOT / "fairy2i_export").rglob("*.py"):
        for extra in re.findall(r"install_hint\(['\"]([\w-]+)['\"]\)", path.read_text(encoding="utf-8")):
            assert re.search(rf"^{extra} = \[", project, re.M), (path, extra)
    assert install_hint("train").startswith("pip install '.[train]' in a checkout")
    assert install_command() == "pip install ."


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (None, "In a checkout of the repository of fairy2i-export:"),
        (["Repository, https://example.org/r"], "the repository of fairy2i-export (https://example.org/r):"),
        (["Docs, https://example.org/d", "Source, https://example.org/s"], "(https://example.org/s):"),
        (["Docs, https://example.org/d"], "In a checkout of the repository of fairy2i-export:"),
    ],
)
def test_the_card_names_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urls: list[str] | None, words: str
) -> None:
    class Metadata:
        def get_all(self, name: str) -> Any:
            assert name == "Project-URL"
            return urls

    monkeypatch.setattr(model_card, "metadata", lambda name: Metadata())
    report = export(make_checkpoint(tmp_path / "model"), tmp_path / "out")
    card = (report.path / "README.md").read_text(encoding="utf-8")
    assert words in card
    assert "\npip install .\n" in card
    assert not FROM_AN_INDEX.search(card)
