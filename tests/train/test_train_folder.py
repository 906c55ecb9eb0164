"""What a training that failed or was interrupted leaves: nothing where nothing was, everything that was there, or a checkpoint."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from conftest import heed_interrupts
from export_helpers import edit_json
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_export.errors import Fairy2iError, OutputError
from fairy2i_export.train import run as train_run
from fairy2i_export.train import train
from fairy2i_export.train.loop.trainer import QATTrainer
from fairy2i_export.train.recipe import Recipe
from fairy2i_export.train.result import folder as result_folder
from fairy2i_export.train.result import save
from fairy2i_export.train.result.folder import claimed
from training_helpers import arguments_of, curve, make_recipe

Spoil = Callable[[Recipe, pytest.MonkeyPatch], Recipe]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file and an empty text for every folder below one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def a_text_that_is_none(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    Path(recipe.data[0]).write_bytes(b"w3 w4 " * 500 + b"caf\xe9")
    return recipe


def an_evaluation_text_that_is_none(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    Path(recipe.eval_data[0]).write_bytes(b"w3 w4 " * 500 + b"caf\xe9")
    return recipe


def a_text_that_is_too_short(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    Path(recipe.data[0]).write_text("w3 w4")
    return recipe


def a_model_that_does_not_load(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    edit_json(Path(recipe.source) / "config.json", hidden_act="no_such_function")
    return recipe


def options_that_fit_no_layer(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    return replace(recipe, include=("nothing*",))


def no_room_for_checkpoints(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    return recipe


def no_room_while_training(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    def full(self: QATTrainer, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(QATTrainer, "training_step", full)
    return recipe


def a_loss_that_is_not_finite(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(
        QATTrainer, "compute_loss", lambda self, *_, **__: next(self.model.parameters()).sum() * float("nan")
    )
    return recipe


FAILURES: list[Spoil] = [
    a_text_that_is_none,
    an_evaluation_text_that_is_none,
    a_text_that_is_too_short,
    a_model_that_does_not_load,
    options_that_fit_no_layer,
    no_room_for_checkpoints,
    no_room_while_training,
    a_loss_that_is_not_finite,
]


@pytest.mark.parametrize("spoil", FAILURES)
def test_a_failure_leaves_nothing_where_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    recipe = spoil(make_recipe(tmp_path, output=tmp_path / "new" / "deep" / "out"), monkeypatch)
    before = contents(tmp_path)
    with pytest.raises(Fairy2iError):
        train(recipe)
    assert contents(tmp_path) == before
    recipe = replace(recipe, output=tmp_path / "empty")
    recipe.output.mkdir()
    with pytest.raises(Fairy2iError):
        train(recipe)
    assert list(recipe.output.iterdir()) == []


@pytest.mark.parametrize("spoil", FAILURES)
def test_a_failure_with_force_leaves_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    recipe = make_recipe(tmp_path)
    train(recipe)
    (recipe.output / "notes.txt").write_text("of the user")
    spoiled = spoil(replace(recipe, force=True, seed=7, block_length=16), monkeypatch)
    before = contents(recipe.output)
    with pytest.raises(Fairy2iError):
        train(spoiled)
    kept = {name: value for name, value in contents(recipe.output).items() if not name.startswith("data/")}
    assert kept == {name: value for name, value in before.items() if not name.startswith("data/")}


@pytest.mark.parametrize("spoil", FAILURES)
def test_a_failure_leaves_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    """With the options of the unfinished run, and a checkpoint to go on from."""
    recipe = make_recipe(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    checkpoints = contents(recipe.output / "checkpoints")
    assert "checkpoint-3" in checkpoints
    assert "checkpoint-6" not in checkpoints
    spoiled = spoil(recipe, monkeypatch)
    with pytest.raises(Fairy2iError):
        train(spoiled)
    after = contents(recipe.output / "checkpoints")
    assert {name: after[name] for name in checkpoints} == checkpoints


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
    """Interrupt training in the step that follows ``step`` steps."""
    compute = QATTrainer.training_step

    def interrupted(self: QATTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise kind
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(QATTrainer, "training_step", interrupted)


def test_an_interruption_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    for name in ("_train_blocks", "_eval_blocks", "_teacher"):
        with monkeypatch.context() as patch:
            patch.setattr(train_run._Run, name, lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt) as caught:
                train(recipe)
        assert caught.value.__notes__ == ["interrupted: there is no checkpoint yet; the same command begins anew"]
        assert not recipe.output.exists()
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(recipe)
    assert caught.value.__notes__ == ["interrupted: there is no checkpoint yet; the same command begins anew"]
    assert not recipe.output.exists()


def test_an_interruption_after_a_checkpoint_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, recipe = make_recipe(tmp_path, output=tmp_path / "whole"), make_recipe(tmp_path)
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, SystemExit)
        with pytest.raises(SystemExit) as caught:
            train(recipe)
    kept = recipe.output / "checkpoints" / "checkpoint-3"
    assert caught.value.__notes__ == [
        f"interrupted: the last good checkpoint is {kept}; the same command continues from there"
    ]
    assert kept.is_dir()
    assert train(recipe).resumed_from == 3
    assert curve(recipe.output) == curve(whole.output)


def test_force_replaces_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    train(recipe)
    before = contents(recipe.output)
    forced = replace(recipe, force=True, learning_rate=3e-3)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(forced)
    assert contents(recipe.output) == before
    stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(forced)
    assert sorted(path.name for path in recipe.output.iterdir()) == ["checkpoints", "data", "logs", "recipe.json"]
    assert json.loads((recipe.output / "recipe.json").read_text())["learning_rate"] == 3e-3


@pytest.mark.parametrize("moves", [0, 1, 2, 3, 99])
def test_a_forced_run_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """Killed after so many files were put aside, nothing is tidied up; the next run puts all back."""
    recipe = make_recipe(tmp_path, steps=1)
    train(recipe)
    before = contents(recipe.output)
    original, left = result_folder.os.replace, [moves]

    def counted(*paths: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        original(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(result_folder.Claim, "give_up", lambda self: True)  # as after SIGKILL
        patch.setattr(result_folder.os, "replace", counted)
        with pytest.raises(KeyboardInterrupt):
            begin_and_stop(replace(recipe, force=True, seed=5))
    assert (recipe.output / ".replaced").is_dir()
    with pytest.raises(OutputError, match="holds a finished run"):
        train(recipe)
    assert contents(recipe.output) == before


def begin_and_stop(recipe: Recipe) -> None:
    with claimed(recipe, 4, Path(recipe.source)) as claim:
        claim.begin()
        (recipe.output / "logs").mkdir()
        (recipe.output / "logs" / "events").write_text("of the killed run")
        raise KeyboardInterrupt


@pytest.mark.parametrize("save_every", [3, 100])
def test_an_interruption_while_the_result_gets_its_place(
    save_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, save_every=save_every)
    place = save.place_file

    def interrupted(finished: Path, path: Path, replaceable: Any) -> bool:
        signal.raise_signal(signal.SIGINT)  # at every file; the first one is heeded, once all have their places
        return place(finished, path, replaceable)

    monkeypatch.setattr(save, "place_file", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(recipe)
    assert caught.value.__notes__[0] == f"interrupted: the result is complete: {recipe.output}"
    export(recipe.output, tmp_path / "exported")
    assert curve(recipe.output)
    with pytest.raises(OutputError, match="holds a finished run"):
        train(recipe)


def test_nothing_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)

    def interrupted(self: QATTrainer, *_: Any, **__: Any) -> Any:
        (recipe.output / "mine.txt").write_text("put here meanwhile")
        raise KeyboardInterrupt

    monkeypatch.setattr(QATTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    assert contents(recipe.output) == {"mine.txt": hashlib.sha256(b"put here meanwhile").hexdigest()}


def test_a_result_has_no_lock_and_nothing_put_aside(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, steps=1)
    train(recipe)
    train(replace(recipe, force=True))
    assert not [path.name for path in recipe.output.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_one_line(tmp_path: Path, number: signal.Signals) -> None:
    recipe = make_recipe(tmp_path, steps=100_000, eval_data=(), save_every=2)
    command = [sys.executable, "-m", "fairy2i_export.commands.tools", *arguments_of(recipe)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True, preexec_fn=heed_interrupts
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not (recipe.output / "checkpoints" / "checkpoint-4").is_dir():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"interrupted: the last good checkpoint is {recipe.output / 'checkpoints'}/checkpoint-")
    assert line.endswith("; the same command continues from there")


def test_main_refuses_places_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    for output, words in ((file / "out", "is no folder"), (file, "is no training folder")):
        assert main(arguments_of(replace(recipe, output=output))) == 2
        assert words in capsys.readouterr().err
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    assert main(arguments_of(replace(recipe, output=dangling))) == 2
    assert "cannot be written" in capsys.readouterr().err
