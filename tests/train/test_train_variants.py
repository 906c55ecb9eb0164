"""Ways to compute and to read that must not change what is learned: recomputed activations, bfloat16, streamed texts."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from fairy2i_export.commands.tools import main
from fairy2i_export.train import Recipe, TrainingResult, train
from fairy2i_export.train.qat.modules import QATLinear
from training_helpers import arguments_of, curve, make_recipe
from training_worker import launch


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TrainingResult]:
    recipe = make_recipe(tmp_path_factory.mktemp("plain"), row_multiplier="learned", steps=4, eval_every=2)
    return recipe, train(recipe)


def losses(result: TrainingResult) -> list[float]:
    return [entry[key] for entry in result.history for key in ("loss", "eval_loss") if key in entry]


def test_recomputed_activations_change_nothing(
    plain: tuple[Recipe, TrainingResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = QATLinear.forward

    def counted(self: QATLinear, *arguments: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(self.name)
        return forward(self, *arguments)

    monkeypatch.setattr(QATLinear, "forward", counted)
    again = replace(plain[0], output=tmp_path / "out", gradient_checkpointing=True)
    result = train(again)
    assert calls.count("model.layers.0.mlp.up_proj") == 2 * 4  # every step computes the decoder block twice,
    assert calls.count("lm_head") == 4  # and nothing else
    assert losses(result) == pytest.approx(losses(plain[1]), abs=1e-6)
    assert len(losses(result)) == 4 + 3


def test_bfloat16_computes_nearly_the_same_with_float32_latents(
    plain: tuple[Recipe, TrainingResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = set()
    forward = QATLinear.forward

    def seen(self: QATLinear, *arguments: torch.Tensor) -> torch.Tensor:
        result = forward(self, *arguments)
        types.add((self.weight.dtype, result.dtype))
        return result

    monkeypatch.setattr(QATLinear, "forward", seen)
    result = train(replace(plain[0], output=tmp_path / "out", bf16=True))
    assert types == {(torch.float32, torch.bfloat16)}  # in evaluations too
    assert losses(result) == pytest.approx(losses(plain[1]), rel=0.01)
    assert losses(result) != losses(plain[1])


def test_bfloat16_with_recomputed_activations_and_a_teacher(plain: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    both = replace(plain[0], output=tmp_path / "both", bf16=True, distill=0.5)
    first = train(both)
    second = train(replace(both, output=tmp_path / "again", gradient_checkpointing=True))
    assert losses(second) == pytest.approx(losses(first), abs=1e-6)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_streamed_run_continues_with_the_same_curve(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, streaming=True, shuffle_buffer=8, steps=14, save_every=6, eval_data=())
    whole = train(recipe)
    again = replace(recipe, output=tmp_path / how)
    if how == "killed":
        assert launch(again, tmp_path / "reports", world=1, die_at=13) == [-signal.SIGKILL]  # in the second pass
    else:
        from fairy2i_export.train.loop.trainer import QATTrainer

        step = QATTrainer.training_step

        def interrupted(self: QATTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            if self.state.global_step == 13:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(QATTrainer, "training_step", interrupted)
            arguments = [*arguments_of(again), "--streaming", "--shuffle-buffer", "8"]
            assert main(arguments) == 130
    result = train(again)
    assert result.resumed_from == 12
    assert curve(again.output) == curve(recipe.output)  # to the last digit
    assert len(losses(whole)) == 14
    assert (again.output / "model.safetensors").read_bytes() == (recipe.output / "model.safetensors").read_bytes()
