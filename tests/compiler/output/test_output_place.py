"""What lies at the target of an export, a rewrite, a training or a page is never removed, whoever put it there and whenever."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.report import write_file
from fairy2i_export.commands.tokenizer_onnx import tokenizer_onnx_command
from fairy2i_export.errors import OutputError, TokenizerError
from fairy2i_export.output import placing
from fairy2i_export.output.contents import foreign_names
from fairy2i_export.output.placing import place_file
from fairy2i_export.output.progress import Observer
from fairy2i_export.rewrite import rewrite_onnx

Appear = Callable[[Path], object]
MINE = "irreplaceable"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def file_in_folder(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text(MINE)


def link_to_folder(out: Path) -> None:
    other = out.parent / "elsewhere"
    file_in_folder(other)
    out.symlink_to(other)


def looks_like_an_export(out: Path) -> None:
    out.mkdir()
    for name in ("model.onnx", "genai_config.json", "rewrite.json"):
        (out / name).write_text(MINE)


APPEARING: dict[str, Appear] = {
    "a folder": file_in_folder,
    "a file": lambda out: out.write_text(MINE),
    "a link to a folder": link_to_folder,
    "a dangling link": lambda out: out.symlink_to("nowhere"),
    "an export": looks_like_an_export,
}


def snapshot(path: Path) -> Any:
    if path.is_symlink():
        return "link", os.readlink(path), {x.name: x.read_bytes() for x in path.iterdir()} if path.is_dir() else None
    return path.read_bytes() if path.is_file() else {x.name: x.read_bytes() for x in path.iterdir()}


class Intruder(Observer):
    """Puts something at the target in the middle of the work."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.notes: list[str] = []

    def phase(self, title: str, total: int) -> None:
        if title == "quantizing":
            self.act()

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("what", APPEARING)
def test_what_appears_while_an_export_runs_stays(source: Path, tmp_path: Path, what: str) -> None:
    out, found = tmp_path / "out", []

    def appear() -> None:
        APPEARING[what](out)
        found.append(snapshot(out))

    with pytest.raises(OutputError, match=r"left as it is.*kept in .*\.out\.partial/folder.*mv .*folder .*out-2") as error:
        export(source, out, observer=Intruder(appear))
    assert [snapshot(out)] == found
    kept = tmp_path / ".out.partial" / "folder"
    reference = export(source, tmp_path / "reference")
    assert snapshot(kept) == {**snapshot(reference.path), "README.md": (kept / "README.md").read_bytes()}
    assert str(kept) in str(error.value)

    # other options would clear it away: refused, and it is still there
    shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink()
    with pytest.raises(OutputError, match="holds the finished model of another command"):
        export(source, out, stages=1)
    assert (kept / "model.onnx").is_file()
    # the same command goes on from it
    observer = Intruder(lambda: None)
    report = export(source, out, observer=observer)
    assert report.reused > 0
    assert "continuing" in observer.notes[0]
    assert (out / "model.onnx.data").read_bytes() == (reference.path / "model.onnx.data").read_bytes()
    assert not (tmp_path / ".out.partial").exists()


def test_the_command_of_the_message_puts_it_in_place(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's out"
    (tmp_path / "it's out-2").mkdir()
    with pytest.raises(OutputError) as error:
        export(source, out, observer=Intruder(lambda: file_in_folder(out)))
    command = str(error.value).partition("under another name: ")[2].partition("; or")[0]
    assert os.system(command) == 0
    assert (tmp_path / "it's out-3" / "model.onnx").is_file()
    assert (out / "notes.txt").read_text() == MINE
    # what is left of the workspace is in nobody's way
    shutil.rmtree(out)
    assert export(source, out, stages=1).options.stages == 1


@pytest.mark.parametrize("force", [False, True])
def test_at_the_last_moment(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    """Between the last look and the rename: the rename itself replaces nothing."""
    out = tmp_path / "out"
    real = os.rename

    def rename(a: Any, b: Any) -> None:
        if Path(b) == out and Path(a).name == "folder":
            file_in_folder(out)
        real(a, b)

    monkeypatch.setattr(placing.os, "rename", rename)
    with pytest.raises(OutputError, match="kept in"):
        export(source, out, force=force)
    assert (out / "notes.txt").read_text() == MINE
    assert (tmp_path / ".out.partial" / "folder" / "model.onnx").is_file()


def test_both_results_are_kept_when_two_collide_with_force(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders are not exchanged: the earlier export is aside, and its place is taken before the new one has it."""
    monkeypatch.setattr(placing, "exchanged", lambda a, b: False)
    out = tmp_path / "out"
    export(source, out, stages=1)
    earlier = snapshot(out)
    real = os.rename

    def rename(a: Any, b: Any) -> None:
        if Path(b) == out and not out.exists():
            looks_like_an_export(out)
        real(a, b)

    monkeypatch.setattr(placing.os, "rename", rename)
    with pytest.raises(OutputError, match=r"the earlier export is in .*\.partial/earlier\. The finished model is kept in"):
        export(source, out, force=True)
    assert snapshot(tmp_path / ".out.partial" / "earlier") == earlier
    assert (out / "model.onnx").read_text() == MINE
    assert (tmp_path / ".out.partial" / "folder" / "model.onnx").stat().st_size > 1000


@pytest.mark.parametrize("name", ["notes.txt", "report.html", "folder", "model.onnx.bak"])
def test_force_spares_the_files_of_others(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    export(source, out, stages=1)
    add = (lambda: (out / name).mkdir()) if name == "folder" else (lambda: (out / name).write_text(MINE))
    add()
    before = {path.name for path in out.iterdir()}
    with pytest.raises(OutputError, match=rf"holds what no export has written \({name}\)"):
        export(source, out, force=True)
    assert {path.name for path in out.iterdir()} == before
    assert not (tmp_path / ".out.partial").exists()
    (out / name).rmdir() if name == "folder" else (out / name).unlink()
    # and if it appears in the meantime
    with pytest.raises(OutputError, match=rf"\({name}\).*kept in"):
        export(source, out, force=True, observer=Intruder(add))
    assert {path.name for path in out.iterdir()} == before
    (out / name).rmdir() if name == "folder" else (out / name).unlink()
    report = export(source, out, force=True)
    assert report.reused > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_all_that_is_written_is_known(tmp_path: Path) -> None:
    """--force may replace whatever an export, a rewrite or the documentation puts into the folder."""
    pytest.importorskip("onnxruntime_extensions")
    source = tmp_path / "stories"
    shutil.copytree(ROOT / "examples" / "models" / "stories260K-fairy2i-w2", source)
    for name in ("special_tokens_map.json", "generation_config.json", "added_tokens.json"):
        (source / name).write_text("{}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    first = export(source, tmp_path / "out", tokenizer_onnx=True, kv_cache="float16")
    assert not foreign_names(first.path)
    assert {"tokenizer.onnx", "chat_template.jinja", "README.md"} <= {path.name for path in first.path.iterdir()}
    dense = export(source, tmp_path / "dense", backend="dense", lm_head="float")
    rewritten = rewrite_onnx(dense.path / "model.onnx", tmp_path / "rewritten", trained=True)
    assert rewritten.path is not None
    assert rewritten.copied
    assert not foreign_names(rewritten.path)


@pytest.mark.parametrize("what", APPEARING)
def test_rewriting_leaves_what_appears(source: Path, tmp_path: Path, what: str) -> None:
    model = export(source, tmp_path / "dense", backend="dense", lm_head="float").path / "model.onnx"
    out, found = tmp_path / "out", []

    def appear() -> None:
        APPEARING[what](out)
        found.append(snapshot(out))

    with pytest.raises(OutputError, match=r"left as it is.*kept in .*\.out\.partial/folder"):
        rewrite_onnx(model, out, observer=Intruder(appear))
    assert [snapshot(out)] == found
    shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink()
    with pytest.raises(OutputError, match="holds the finished model of another command"):
        rewrite_onnx(model, out, stages=1)
    assert (tmp_path / ".out.partial" / "folder" / "rewrite.json").is_file()
    rewrite_onnx(model, out, force=True)
    assert (out / "rewrite.json").is_file()
    assert not (tmp_path / ".out.partial").exists()


def test_an_empty_folder_is_a_fine_target(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("out", "forced", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    assert export(source, tmp_path / "out").path == tmp_path / "out"
    export(source, tmp_path / "forced", force=True)
    export(source, tmp_path / "link")
    for name in ("out", "forced", "real"):
        assert (tmp_path / name / "model.onnx").is_file()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match=r"is the folder you are in.*name a new folder in it"):
        export(source, ".")
    assert export(source, "./inside").path == Path("inside")


def is_mine(path: Path) -> bool:
    return path.read_text() == "earlier"


@pytest.mark.parametrize("links", [True, False])
def test_files_get_their_name_like_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:  # a file system without hard links

        def link(*_: Any) -> None:
            raise OSError(95, "not supported")

        monkeypatch.setattr(placing.os, "link", link)
    path = tmp_path / "page"
    for present, placed in ((None, True), ("earlier", True), (MINE, False)):
        (tmp_path / "new").write_text("new")
        path.unlink(missing_ok=True)
        if present is not None:
            path.write_text(present)
        assert place_file(tmp_path / "new", path, is_mine) is placed
        assert path.read_text() == ("new" if placed else MINE)
        assert (tmp_path / "new").exists() is not placed


def test_a_page_replaces_pages_of_ours_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = '<!DOCTYPE html>\n<meta name="generator" content="fairy2i report">\n'
    older = "\n<!DOCTYPE html>\n<title>x in Fairy2i</title>"
    theirs = "<!DOCTYPE html>\n<title>My thesis</title>"
    page = tmp_path / "report.html"
    for before in (ours, older, ""):
        page.write_text(before)
        write_file(page, ours + "new")
        assert page.read_text() == ours + "new"
    page.write_text(theirs)
    with pytest.raises(OutputError, match="exists and is no report"):
        write_file(page, ours)
    page.unlink()
    real = os.link

    def link(a: Any, b: Any) -> None:
        page.write_text(theirs)
        real(a, b)

    monkeypatch.setattr(placing.os, "link", link)
    with pytest.raises(OutputError, match="The finished page is kept: mv ") as error:
        write_file(page, ours + "late")
    assert page.read_text() == theirs
    assert os.system(str(error.value).partition("is kept: ")[2]) == 0
    assert (tmp_path / "report.html-2").read_text() == ours + "late"


@pytest.mark.parametrize("name", ["tokenizer.onnx", "detokenizer.onnx"])
@pytest.mark.parametrize("content", [b"not ONNX", b""])
def test_graphs_of_others_are_not_replaced(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(OutputError, match=rf"{name}: exists and was not made here"):
        tokenizer_onnx_command(tmp_path)
    assert (tmp_path / name).read_bytes() == content
    (tmp_path / name).unlink()
    with pytest.raises(TokenizerError):
        tokenizer_onnx_command(tmp_path)


def test_training_leaves_the_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy2i_export.train import train
    from fairy2i_export.train.result import save as saving
    from training_helpers import make_recipe

    recipe = make_recipe(tmp_path, steps=2, eval_data=())
    real = saving.save_result

    def save(out: Path, *rest: Any) -> None:
        (out / "README.md").write_text(MINE)
        real(out, *rest)

    monkeypatch.setattr("fairy2i_export.train.run.save_result", save)
    with pytest.raises(OutputError, match=r"README\.md: somebody has put.*kept in .*\.result"):
        train(recipe)
    assert (recipe.output / "README.md").read_text() == MINE
    assert (recipe.output / ".result" / "model.safetensors").is_file()
    assert not (recipe.output / "config.json").exists()
    monkeypatch.undo()
    (recipe.output / "README.md").rename(tmp_path / "mine")
    assert train(recipe).resumed_from == 2
    assert json.loads((recipe.output / "config.json").read_text())["fairy2i"]
    assert not {".result"} & {path.name for path in recipe.output.iterdir()}

    (recipe.output / "notes.txt").write_text(MINE)
    with pytest.raises(OutputError, match=r"no training has written \(notes\.txt\)"):
        train(replace(recipe, force=True))
    assert (recipe.output / "model.safetensors").is_file()
    (recipe.output / "notes.txt").unlink()
    train(replace(recipe, force=True))


def test_force_is_advised_only_where_it_helps(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text(MINE)
    file_in_folder(tmp_path / "notes")
    export(source, tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text(MINE)
    monkeypatch.chdir(tmp_path / "notes")
    for out, reason in (
        (tmp_path / "t.txt", "is no folder"),
        (source, "holds the source checkpoint"),
        (tmp_path, "holds the source checkpoint"),
        (Path(), "is the folder you are in"),
        (tmp_path / "mixed", "exists already and holds what no export has written"),
    ):
        messages = []
        for force in (False, True):
            with pytest.raises(OutputError, match=reason) as error:
                export(source, out, force=force)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert "or --force" not in messages[0]
    export(source, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already; choose another folder, or --force"):
        export(source, tmp_path / "out")
