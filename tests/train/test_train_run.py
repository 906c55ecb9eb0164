"""Training runs: what comes out exports and computes the same, and an interrupted run continues exactly."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import fairy2i_export
import fairy2i_runtime
from fairy2i_export.commands.tools import main
from fairy2i_export.train import TrainingResult, train
from fairy2i_export.train.loop.checkpoint_guard import good_checkpoints
from fairy2i_export.train.recipe import Recipe
from fairy2i_runtime.measure.perplexity import measure, model_scorer, sliding_windows
from training_helpers import SEPARATOR, arguments_of, curve, make_recipe
from training_worker import launch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TrainingResult]:
    """An uninterrupted run."""
    recipe = make_recipe(tmp_path_factory.mktemp("train"))
    return recipe, train(recipe)


def test_it_learns_and_leaves_a_complete_folder(trained: tuple[Recipe, TrainingResult]) -> None:
    recipe, result = trained
    assert result.steps == 8
    assert result.tokens == 8 * 4 * 32
    assert result.eval_loss_before is not None
    assert result.eval_loss_final is not None
    assert result.eval_loss_final < result.eval_loss_before - 0.3
    names = {path.name for path in recipe.output.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "curves.png", "training_log.json"}
    assert (recipe.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((recipe.output / "logs").glob("events.out.tfevents.*"))
    assert "| seed | 42 |" in (recipe.output / "README.md").read_text()
    assert [path.name for path in good_checkpoints(recipe.output / "checkpoints")] == ["checkpoint-6", "checkpoint-8"]
    config = json.loads((recipe.output / "config.json").read_text())
    assert config["fairy2i"]["stages"] == 2
    assert config["fairy2i"]["latent"] is True
    assert {array.dtype.name for array in load_file(recipe.output / "model.safetensors").values()} == {"bfloat16"}


def perplexities(recipe: Recipe, folder: Path, source: Path) -> tuple[float, float]:
    """Of the evaluation text, by ONNX Runtime from the export of ``source`` and by torch with the quantizing layers."""
    report = fairy2i_export.export(source, folder, trained=source != recipe.output)
    assert not [text for text in report.warnings if "trained" in text]
    model = fairy2i_runtime.load(folder, kernel="exact", threads=1)
    text = Path(recipe.eval_data[0]).read_text().replace(SEPARATOR, " ")
    windows = sliding_windows(model.tokenizer, text, 64)
    twin = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    fairy2i_export.train.prepare(twin)  # as config.json says
    learned = {name: array for name, array in load_file(source / "model.safetensors").items() if array.dtype == np.float32}
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in learned.items()}, strict=False)

    def score(ids: Sequence[int]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            logits = twin(torch.tensor([list(ids)])).logits[0].double()
        found: npt.NDArray[np.float64] = torch.log_softmax(logits, -1)[
            torch.arange(len(ids) - 1), torch.tensor(ids[1:])
        ].numpy()
        return found

    return measure(windows, model_scorer(model)).perplexity, measure(windows, score).perplexity


def test_it_exports_and_onnxruntime_agrees_with_torch(trained: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    recipe, _ = trained
    found, expected = perplexities(recipe, tmp_path / "onnx", recipe.output)
    assert abs(found / expected - 1) < 0.005
    untrained, _ = perplexities(recipe, tmp_path / "untrained", Path(recipe.source))
    assert untrained > 1.2 * found


def test_learned_multipliers_and_scales_export_too(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path,
        row_multiplier="learned",
        learned_scales=True,
        quantizer="joint",
        stages=3,
        steps=4,
        float_learning_rate=3e-3,
    )
    train(recipe)
    found, expected = perplexities(recipe, tmp_path / "onnx", recipe.output)
    assert abs(found / expected - 1) < 0.005


def test_a_killed_run_continues_with_the_same_curve(trained: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    recipe, whole = trained
    again = replace(recipe, output=tmp_path / "killed")
    assert launch(again, tmp_path / "reports", world=1, die_at=5) == [-signal.SIGKILL]
    assert [path.name for path in good_checkpoints(again.output / "checkpoints")] == ["checkpoint-3"]
    assert not (again.output / "config.json").exists()
    result = train(again)
    assert result.resumed_from == 3
    assert curve(again.output) == curve(recipe.output)  # to the last digit
    assert result.eval_loss_final == whole.eval_loss_final
    assert (again.output / "model.safetensors").read_bytes() == (recipe.output / "model.safetensors").read_bytes()


def test_interrupted_inside_an_epoch_with_distillation_and_accumulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, distill=0.7, temperature=2.0, batch=2, accumulate=2, eval_data=(), log_every=4)
    train(recipe)
    again = replace(recipe, output=tmp_path / "again")
    from fairy2i_export.train.loop.trainer import QATTrainer

    step = QATTrainer.training_step

    def interrupted(self: QATTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(QATTrainer, "training_step", interrupted)
        assert main([*arguments_of(again), "--temperature", "2.0"]) == 130
    assert main([*arguments_of(again), "--temperature", "2.0"]) == 0
    assert curve(again.output) == curve(recipe.output)
    history = json.loads((again.output / "training_log.json").read_text())["history"]
    logged = next(entry for entry in history if "divergence" in entry)
    assert logged["divergence"] > 0
    assert logged["loss"] == pytest.approx(0.3 * logged["cross_entropy"] + 0.7 * logged["divergence"], rel=1e-5)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, learning_rate=0.3, schedule="constant", patience=2, eval_every=1, steps=30, log_every=100)
    result = train(recipe)
    losses = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    assert result.steps == best
    assert max(losses) == best + 2
    assert result.eval_loss_final == pytest.approx(losses[best], abs=0.02)  # rounded to bfloat16


def test_early_stopping_keeps_the_source_if_nothing_is_better(
    trained: tuple[Recipe, TrainingResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained[0].output)
    recipe = make_recipe(
        tmp_path, source=source, learning_rate=3.0, schedule="constant", patience=1, eval_every=2, quiet=False
    )
    result = train(replace(recipe, method="fairy2i", row_multiplier="learned"))
    assert (result.steps, result.tokens) == (0, 0)
    assert max(entry["step"] for entry in result.history) == 2
    assert result.eval_loss_final == result.eval_loss_before
    assert "keeping the best weights, those of the source" in capsys.readouterr().out
    kept, given = load_file(recipe.output / "model.safetensors"), load_file(Path(source) / "model.safetensors")
    assert all(np.array_equal(kept[name], array) for name, array in given.items())


def test_the_last_step_is_evaluated_before_the_best_is_chosen(tmp_path: Path) -> None:
    result = train(make_recipe(tmp_path, patience=5, eval_every=5, steps=7))
    assert [entry["step"] for entry in result.history if "eval_loss" in entry] == [0, 5, 7]
    assert result.steps == 7


def test_text_of_the_teacher_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, data=(), teacher_text=200, distill=1.0, eval_data=(), steps=2)
    train(recipe)
    written = np.load(recipe.output / "data" / "teacher.npy")
    assert written.shape == (7, 32)
    assert set(written[:, 0]) == {1}  # begins with the beginning of a text
    assert len(np.unique(written)) > 50
    before = (recipe.output / "data" / "teacher.npy").stat().st_mtime_ns
    train(replace(recipe, force=True))
    assert (recipe.output / "data" / "teacher.npy").stat().st_mtime_ns == before


def test_every_other_text_of_the_teacher_begins_with_any_token(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path,
        data=(),
        teacher_text=640,
        teacher_starts="mixed",
        teacher_temperature=0.5,
        distill=1.0,
        eval_data=(),
        steps=2,
    )
    train(recipe)
    written = np.load(recipe.output / "data" / "teacher.npy")
    assert written.shape == (20, 32)
    assert set(written[::2, 0]) == {1}
    assert len(set(written[1::2, 0])) > 5
    assert not {0, 1, 2} & set(written[1::2, 0])  # added tokens begin no text
    said = json.loads((recipe.output / "data" / "teacher.json").read_text())
    assert (said["starts"], said["temperature"]) == ("mixed", 0.5)


@pytest.mark.parametrize("method", ["float", "binary", "ternary"])
def test_methods_to_compare_with(method: str, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, method=method, steps=4, save_dtype="float32")
    result = train(recipe)
    assert result.eval_loss_final is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss_final < result.eval_loss_before
    config = json.loads((recipe.output / "config.json").read_text())
    assert config.get("fairy2i", {}).get("method", "float") == method


def test_a_tied_head_gets_its_own_matrix_unless_skipped(tmp_path: Path) -> None:
    from training_helpers import make_source

    source = str(make_source(tmp_path / "tied", tie_word_embeddings=True))
    recipe = make_recipe(tmp_path, source=source, steps=2, eval_data=())
    train(recipe)
    weights = load_file(recipe.output / "model.safetensors")
    assert not np.array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert json.loads((recipe.output / "config.json").read_text())["tie_word_embeddings"] is False
    kept = replace(recipe, output=tmp_path / "kept", skip_lm_head=True)
    train(kept)
    assert "lm_head.weight" not in load_file(kept.output / "model.safetensors")
    config = json.loads((kept.output / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["fairy2i"]["lm_head"] == "float"
