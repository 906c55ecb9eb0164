"""An export that is killed at a named point, or whose disk is full or fails at any of its calls, leaves no half of a folder.

What is there afterwards is the earlier export or the new one, or nothing but what the same command continues; and that gives
the same bytes as an export that nothing happened to.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_hostile_kills import in_a_child

from conftest import HELPERS
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.compile.calibrate.store import LayerStore
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_export.train.loop import checkpoint_guard
from faulty_runs import Ask, asking
from named_points import EXPORT, ONLY_WITH_AN_EARLIER
from rewrite_helpers import save_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, SIGKILL and LD_PRELOAD")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cc = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if cc is None:
        pytest.skip("no compiler")
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [
        cc,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(HELPERS / "programs" / "faults.c"),
        "-o",
        str(target),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def ask(shim: Path) -> Iterator[Ask]:
    """What becomes of an export: see faulty_runs.py."""
    with asking("export", LD_PRELOAD=str(shim)) as ask:
        yield partial(ask, "export")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def old(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source, tmp_path_factory.mktemp("old") / "out", stages=1).path


@pytest.fixture(scope="module")
def new(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source, tmp_path_factory.mktemp("new") / "out").path


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the card, which tells how long it took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def check(ask: Ask, source: Path, out: Path, old: Path | None, new: Path) -> None:
    """What an unfinished export has left, and what the same command makes of it."""
    if out.exists():
        assert contents(out) in ([contents(new)] if old is None else [contents(old), contents(new)])
        assert (out / "README.md").is_file() == (new / "README.md").is_file()
    else:
        assert old is None
    assert ask(source, out)["error"] == ""
    assert contents(out) == contents(new)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True], ids=["nothing there", "an earlier export"])
@pytest.mark.parametrize("point", EXPORT)
def test_killed_at(point: str, earlier: bool, ask: Ask, source: Path, old: Path, new: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if earlier:
        shutil.copytree(old, out)
    found = ask(source, out, point)
    assert found["killed"] == (earlier or point not in ONLY_WITH_AN_EARLIER)
    check(ask, source, out, old if earlier else None, new)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return save_model(
        tmp_path_factory.mktemp("onnx") / "model.onnx",
        "h = MatMul(x, w)\na = Relu(h)\ny = MatMul(a, w)",
        {"x": ("float", ["batch", 64])},
        {"y": "float"},
        {"w": weight},
    )


@pytest.mark.parametrize("what", ["checkpoint", "onnx"])
@pytest.mark.parametrize("earlier", [False, True], ids=["nothing there", "an earlier export"])
@pytest.mark.parametrize(("number", "stays"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["full", "fails once"])
def test_a_disk_that_is_full_or_fails(
    what: str, number: int, stays: bool, earlier: bool, ask: Ask, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At every sixth (or second) call that changes a file, and the last ones."""
    source = request.getfixturevalue("source" if what == "checkpoint" else "onnx_model")
    before = ask(source, tmp_path / "all" / "out", FAULTS_UNDER=tmp_path)
    new = (tmp_path / "all").rename(tmp_path / "new") / "out"
    old = request.getfixturevalue("old") if what == "checkpoint" else rewritten(source, tmp_path / "old")
    total, refused = before["calls"], 0
    assert total > 12
    for at in sorted({*range(1, total, 6 if what == "checkpoint" else 2), *range(total - 4, total + 1)}):
        folder = tmp_path / str(at)
        folder.mkdir()
        out = folder / "out"
        if earlier:
            shutil.copytree(old, out)
        variables = {"FAULTS_UNDER": folder, "FAULTS_AT": at, "FAULTS_ERRNO": number, "FAULTS_STAY": int(stays)}
        error = ask(source, out, **variables)["error"]
        refused += bool(error)
        if error:
            assert str(out) in error or str(folder) in error, error
            assert os.strerror(number) in error, error
        check(ask, source, out, old if earlier else None, new)
    assert refused > 5


def rewritten(source: Path, out: Path) -> Path:
    rewrite_onnx(source, out, stages=1)
    return out


# ---- what a calibration keeps, and checkpoints of a training

STORE = """
import sys, numpy as np
from pathlib import Path
from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.compile.calibrate.store import LayerStore
rng = np.random.default_rng(0)
codes, scales = rng.integers(0, 4, (2, 2, 64, 64), np.uint8), np.ones((2, 2, 2), np.float32)
linear = CalibratedLinear(QuantizedLinear(codes, scales, "fp32", np.ones(128, np.float32)), "0" * 64, 0.5)
store = LayerStore(Path(sys.argv[1]), {"model": "a"})
try:
    store.write(len(store), {f"layer{len(store)}": linear})
except OSError as error:
    sys.exit(f"OSError: {error.strerror}")
"""


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_calibrated_layer_that_cannot_be_written(at: int, shim: Path, tmp_path: Path) -> None:
    """The full disk is an OSError, which an export tells in its words, and a layer that is there is a whole one."""
    folder = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", STORE, str(folder)], env=environment, check=True)
    faults = {"LD_PRELOAD": str(shim), "FAULTS_UNDER": str(folder), "FAULTS_AT": str(at), "FAULTS_ERRNO": str(errno.ENOSPC)}
    done = subprocess.run(
        [sys.executable, "-c", STORE, str(folder)],
        env={**environment, **faults},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "OSError: No space left on device\n")
    assert len(LayerStore(folder, {"model": "a"})) == 1


@pytest.mark.parametrize("kept", [0, 7, 300])
def test_a_calibrated_layer_that_was_cut_is_made_again(kept: int, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", STORE, str(folder)], env=environment, check=True)
    os.truncate(folder / "00001.safetensors", kept)
    (folder / "tuned.safetensors").write_bytes(b"x" * kept)
    store = LayerStore(folder, {"model": "a"})
    assert (len(store), "layer0" in store, "layer1" in store, store.tuned) == (1, True, False, None)
    assert store.read(1) is None


def save_checkpoint(directory: Path, step: int) -> None:
    """As a training does: staged, sealed, and the one before removed."""
    staged = checkpoint_guard.staging(directory) / f"checkpoint-{step}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng.json"):
        (staged / name).write_text(f"{name} of {step}")
    checkpoint_guard.seal(directory, step)
    checkpoint_guard.rotate(directory, keep=1)


def test_a_training_that_is_killed_while_it_saves(tmp_path: Path) -> None:
    """At every change of a name: a checkpoint counts if it is whole, and one does at any time."""
    finished, kill_after = False, 0
    while not finished:
        kill_after += 1
        directory = tmp_path / str(kill_after)
        directory.mkdir()
        save_checkpoint(directory, 1)
        finished = in_a_child(lambda directory=directory: save_checkpoint(directory, 2), kill_after, True)  # type: ignore[misc]
        for _ in range(2):
            good = checkpoint_guard.good_checkpoints(directory)
            assert good
            for checkpoint in good:
                step = checkpoint_guard.step_of(checkpoint)
                texts = {
                    path.name: path.read_text() for path in checkpoint.iterdir() if path.name != checkpoint_guard.MANIFEST
                }
                assert texts == {name: f"{name} of {step}" for name in ("model.safetensors", "optimizer.pt", "rng.json")}
            save_checkpoint(directory, 3)  # goes on
        assert [path.name for path in directory.iterdir()] == ["checkpoint-3"]
    assert kill_after > 5
