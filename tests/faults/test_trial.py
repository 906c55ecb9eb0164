"""ONNX Runtime opens a result in a process of its own: if it dies of it, that is one error and nothing is left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.errors import Fairy2iError
from fairy2i_export.output.contract import worker
from fairy2i_export.output.contract.trial import try_model
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_runtime.text.sandbox.process import is_apart
from sound_models import SOUND

CC = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(sys.platform != "linux" or CC is None or not is_apart(), reason="needs Linux and a compiler")


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of operators that ends the process which registers it."""
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "dies.c").write_text("#include <stdlib.h>\nvoid *RegisterCustomOps(void) { abort(); }\n")
    subprocess.run([str(CC), "-shared", "-fPIC", "dies.c", "-o", "dies.so"], cwd=folder, check=True)
    return folder / "dies.so"


def die(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of trials, and it alone, have the library."""
    monkeypatch.setattr(worker, "library_of_worker", lambda: str(library))


def test_a_death_is_a_refusal_and_the_next_trial_is_another_process(
    deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(SOUND["gemm"]().SerializeToString())
    assert try_model(path).refusal == ""
    with monkeypatch.context() as patch:
        die(deadly, patch)
        assert try_model(path).refusal == "ONNX Runtime died while it opened model.onnx (SIGABRT)"
    assert try_model(path).refusal == ""
    path.write_bytes(b"\xff")
    assert "model.onnx" in try_model(path).refusal


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_nothing_is_left_behind(kind: str, deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model.onnx"
    if kind == "checkpoint":
        source = make_checkpoint(tmp_path / "model")
    else:
        source.write_bytes(SOUND["gemm"]().SerializeToString())
    make = export if kind == "checkpoint" else rewrite_onnx
    with monkeypatch.context() as patch:
        die(deadly, patch)
        with pytest.raises(Fairy2iError, match=r"ONNX Runtime died while it opened model.onnx \(SIGABRT\)") as caught:
            make(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
    assert make(source, tmp_path / "out").path == tmp_path / "out"
