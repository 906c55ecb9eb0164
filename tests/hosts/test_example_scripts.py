"""The scripts in examples/ that make a checkpoint or a text: what they cannot do is told first, in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

EXAMPLES = ROOT / "examples"
MODEL = EXAMPLES / "models" / "stories260K-fairy2i-w2"


def refused(script: str, *arguments: Path | str) -> str:
    """The message of a script that exits with 2."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("t.txt", "expected the name of a new folder, found something else"),
        ("full", "found one that is in use and holds no model"),
        ("t.txt/below", "no folder can be made in"),
    ],
)
def test_a_download_needs_a_place(target: str, message: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    assert message in refused("fetch_smollm2.py", place / target)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        (MODEL, "full", "expected the name of a file, found something else"),
        (MODEL, "absent/t.txt", "does not exist"),
        ("absent", "new.txt", "found no config.json in it"),
        ("full", "new.txt", "found no config.json in it"),
        (MODEL, "new.txt", "found no chat template"),
    ],
)
def test_a_model_that_writes_its_text_is_looked_at_first(source: Path | str, text: str, message: str, place: Path) -> None:
    pytest.importorskip("transformers")
    before = sorted(place.rglob("*"))
    assert message in refused("self_text.py", place / source, place / text)
    assert sorted(place.rglob("*")) == before


def test_what_was_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    import self_text

    assert self_text.write(tmp_path / "new.txt", "a text") == ""
    assert (tmp_path / "new.txt").read_text() == "a text"
    (tmp_path / "folder").mkdir()  # made while the model wrote
    said = self_text.write(tmp_path / "folder", "a text")
    assert "the text is kept in " in said
    assert Path(said.rpartition(" ")[2]).read_text() == "a text"
    assert not list(tmp_path.glob(".*"))


def test_a_chat_model_writes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = tmp_path / "model"
    source.mkdir()
    for path in MODEL.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    command = [sys.executable, str(EXAMPLES / "self_text.py"), str(source), str(tmp_path / "t.txt")]
    subprocess.run([*command, "--conversations=2", "--prose=1", "--tokens=24"], check=True, capture_output=True, timeout=300)
    written = (tmp_path / "t.txt").read_text(encoding="utf-8")
    assert written.count("user:") >= 2
    assert "Once upon a time" in written
    assert written.startswith("user: What is")
    assert "user: How does" in written
