"""Two processes train like one: DDP, and FSDP2 with sharded weights; interrupted ones continue."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.numpy import load_file

from fairy2i_export.train import train
from fairy2i_export.train.recipe import Recipe
from training_helpers import curve, make_recipe
from training_worker import launch

CONFIGURATIONS = ROOT / "examples" / "training"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The run of one process, with twice the batch."""
    recipe = make_recipe(tmp_path_factory.mktemp("train"), batch=4, row_multiplier="rms")
    train(recipe)
    return recipe


def same_curve(found: Path, expected: Path) -> None:
    found_curve, expected_curve = curve(found), curve(expected)
    assert [entry[:2] for entry in found_curve] == [entry[:2] for entry in expected_curve]
    for (step, key, value), (_, _, other) in zip(found_curve, expected_curve, strict=True):
        assert value == pytest.approx(other, rel=3e-5), f"{key} at step {step}"


def test_ddp(alone: Recipe, tmp_path: Path) -> None:
    recipe = replace(alone, output=tmp_path / "two", batch=2)
    assert launch(recipe, tmp_path / "reports") == [0, 0]
    same_curve(recipe.output, alone.output)
    first, second = (json.loads((tmp_path / "reports" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["main"]
    assert not second["main"]
    assert set(second["writes"]) <= {"rng_state_1.pth"}  # its own random state, and nothing else
    assert {"config.json", "README.md", "manifest.json"} <= set(first["writes"]) | {"config.json"}


def test_fsdp2_computes_scales_over_whole_matrices_and_continues(alone: Recipe, tmp_path: Path) -> None:
    recipe = replace(alone, output=tmp_path / "sharded", batch=2)
    assert launch(recipe, tmp_path / "reports", fsdp=True, die_at=5) == [-9, -9]
    assert not (recipe.output / "config.json").exists()
    assert launch(recipe, tmp_path / "reports", fsdp=True) == [0, 0]
    assert json.loads((tmp_path / "reports" / "1.json").read_text())["resumed"] == 3
    same_curve(recipe.output, alone.output)
    found, expected = (load_file(folder / "model.safetensors") for folder in (recipe.output, alone.output))
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in expected.items()}


def test_another_number_of_processes_continues(alone: Recipe, tmp_path: Path) -> None:
    recipe = replace(alone, output=tmp_path / "moved", batch=2)
    shutil.copytree(alone.output, recipe.output)
    for name in ("config.json", "training_log.json"):
        (recipe.output / name).unlink()
    shutil.rmtree(recipe.output / "checkpoints" / "checkpoint-8")
    assert launch(recipe, tmp_path / "reports") == [0, 0]
    assert json.loads((tmp_path / "reports" / "0.json").read_text())["resumed"] == 6
    same_curve(recipe.output, alone.output)


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_what_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    given = getattr(config, "deepspeed_config", None) or {}
    if given:
        settings = json.loads((CONFIGURATIONS.parent.parent / given["deepspeed_config_file"]).read_text())
        assert settings["zero_optimization"]["stage"] == 1
