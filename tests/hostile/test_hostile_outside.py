"""Nothing that comes with a checkpoint makes an export touch, or carry along, a file outside of its folders."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.errors import CheckpointError, Fairy2iError, ModelError, OutputError
from fairy2i_export.output.disk.own_files import open_own
from fairy2i_export.output.progress import Observer
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_export.train.recipe import Recipe
from fairy2i_export.train.result.folder import check_place
from rewrite_helpers import save_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights there")
PRECIOUS = '{"precious": "contents"}'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text(PRECIOUS)
    return path


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_dir() or path.lstat().st_mode
        for path in sorted(folder.rglob("*"))
    }


INSIDE = (
    "journal",
    "lock",
    "finished",
    "stages.json",
    "folder/model.onnx.data",
    "folder/README.md",
    "calibrated/identity.json",
)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("how", ["link", "hard link", "pipe", "socket"])
def test_an_unfinished_export_with_something_strange_in_it(
    source: Path, tmp_path: Path, victim: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / ".out.partial"
    (partial / name).parent.mkdir(parents=True)
    monkeypatch.chdir((partial / name).parent)  # names of sockets are short
    plant: dict[str, Callable[[str], Any]] = {
        "link": lambda path: os.symlink(victim, path),
        "hard link": lambda path: os.link(victim, path),
        "pipe": os.mkfifo,
        "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    }
    plant[how](Path(name).name)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=rf"{Path(name).name}: is .*neither used nor changed"):
        export(source, tmp_path / "out")
    assert victim.read_text() == PRECIOUS
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["", "folder", "calibrated"])
def test_folders_that_are_links(source: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    partial = tmp_path / ".out.partial"
    if name:
        partial.mkdir()
    (partial / name if name else partial).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=r"is a link|is no unfinished export"):
        export(source, tmp_path / "out")
    assert not any(elsewhere.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_an_unfinished_export_of_another_user(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    os.chown(partial, 12345, 12345)
    with pytest.raises(OutputError, match=r"property of another user \(12345, expected 0\)"):
        export(source, tmp_path / "out")
    assert not any(partial.iterdir())


def test_files_are_opened_without_following(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OutputError, match="is a link"):
        open_own(tmp_path / "link")
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # it becomes one after the look
    with pytest.raises(OSError, match=r"."):
        open_own(tmp_path / "link")
    with open_own(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").read_bytes() == b"x"
    assert victim.read_text() == PRECIOUS


def test_a_planted_library_does_not_reach_the_result(source: Path, tmp_path: Path) -> None:
    """An unfinished export is continued with its data file and nothing else that lies there."""

    class Stop(Observer):
        def __init__(self) -> None:
            self.left = 4

        def advance(self, amount: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Stop())
    folder = tmp_path / ".out.partial" / "folder"
    (folder / "libfairy2i_ops.so").write_text("code")
    (folder / "chat_template.jinja").write_text("{{ planted }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ planted }}")
    report = export(source, tmp_path / "out")
    assert report.reused > 0
    reference = export(source, tmp_path / "reference")
    assert {path.name for path in report.path.iterdir()} == {path.name for path in reference.path.iterdir()}
    assert (report.path / "model.onnx.data").read_bytes() == (reference.path / "model.onnx.data").read_bytes()


def test_a_link_with_the_default_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model-fairy2i").symlink_to("elsewhere")
    with pytest.raises(OutputError, match=r"is a link to elsewhere; to write there, name it"):
        export(source)
    assert not Path("elsewhere").exists()
    model = save_model(
        tmp_path / "model.onnx",
        "y = MatMul(x, w)",
        {"x": ("float", [2, 4])},
        {"y": "float"},
        {"w": np.ones((4, 4), np.float32)},
    )
    Path(f"{tmp_path.name}-fairy2i").symlink_to("elsewhere")
    with pytest.raises(OutputError, match=r"is a link to elsewhere"):
        rewrite_onnx(model, trained=True)


CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)


@pytest.mark.parametrize("name", CARRIED)
def test_a_link_out_of_the_checkpoint(source: Path, tmp_path: Path, victim: Path, name: str) -> None:
    path = source / name
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        shutil.copyfile(path, victim)  # what it names could well be used
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(CheckpointError, match=rf"{path.name}: is a link to .*victim, outside of "):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linked_folder_of_templates(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jinja").write_text(PRECIOUS)
    (source / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"a\.jinja: is a link to "):
        export(source, tmp_path / "out")


def test_links_that_stay(source: Path, tmp_path: Path) -> None:
    """Inside the folder; from a snapshot into the blobs of its cache; weights from anywhere."""
    reference = export(source, tmp_path / "reference").path
    (source / "generation_config.json").write_text("{}")
    (source / "special_tokens_map.json").symlink_to("generation_config.json")
    repo = tmp_path / "models--a--b"
    snapshot_folder, blobs = repo / "snapshots" / "0123", repo / "blobs"
    snapshot_folder.mkdir(parents=True)
    blobs.mkdir()
    for index, path in enumerate(sorted(source.iterdir())):
        shutil.copyfile(path, blobs / f"{index:064x}")
        (snapshot_folder / path.name).symlink_to(f"../../blobs/{index:064x}")
    (source / "model.safetensors").rename(tmp_path / "weights")
    (source / "model.safetensors").symlink_to(tmp_path / "weights")
    for place in (source, snapshot_folder):
        out = export(place, tmp_path / f"of-{place.name}").path
        assert (out / "special_tokens_map.json").read_text() == "{}"
        assert not (out / "special_tokens_map.json").is_symlink()
        assert (out / "model.onnx.data").read_bytes() == (reference / "model.onnx.data").read_bytes()
    # a cache whose blobs are not its own
    shutil.move(blobs, tmp_path / "others")
    blobs.symlink_to(tmp_path / "others")
    with pytest.raises(CheckpointError, match="is a link to"):
        export(snapshot_folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json", "added_tokens.json", "dense.onnx.data"])
def test_a_link_out_of_a_rewritten_model_s_folder(source: Path, tmp_path: Path, name: str) -> None:
    folder = export(source, tmp_path / "dense", backend="dense", lm_head="float").path
    other = tmp_path / "elsewhere"
    if name == "dense.onnx.data":
        name = "model.onnx.data"
    (folder / name).rename(other) if (folder / name).exists() else other.write_text("{}")
    (folder / name).symlink_to(other)
    kind: type[Fairy2iError] = ModelError if name == "model.onnx.data" else CheckpointError
    with pytest.raises(kind, match="is a link to"):
        rewrite_onnx(folder / "model.onnx", tmp_path / "out", trained=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".recipe.json", ".lock", "data/train.partial", "checkpoints/placed.json", ".result"])
@pytest.mark.parametrize("force", [False, True])
def test_a_training_folder_with_a_link(source: Path, tmp_path: Path, victim: Path, name: str, force: bool) -> None:
    out = tmp_path / "trained"
    (out / name).parent.mkdir(parents=True)
    (out / "recipe.json").write_text('{"source": "model"}')
    (out / name).symlink_to(victim)
    recipe = Recipe(source=str(source), output=out, data=("text.txt",), force=force)
    with pytest.raises(OutputError, match=rf"{Path(name).name}: is a link"):
        check_place(recipe, source)
    assert victim.read_text() == PRECIOUS
