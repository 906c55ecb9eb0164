"""Training on from a model that was trained already: its settings, its learned tensors, and warnings about contradictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM

from export_helpers import edit_json
from fairy2i_export.commands.tools import main
from fairy2i_export.errors import OptionError
from fairy2i_export.source.hub import open_source
from fairy2i_export.train import QATLinear, Recipe, TrainingResult, prepare, train
from fairy2i_export.train.continuing import complete_settings
from training_helpers import SEPARATOR, arguments_of, make_recipe


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TrainingResult]:
    """A run with everything learned that can be, far enough from where it started."""
    recipe = make_recipe(
        tmp_path_factory.mktemp("first"),
        row_multiplier="learned",
        learned_scales=True,
        stages=3,
        profile="fp32",
        skip_lm_head=True,
        exclude=("*.q_proj",),
        activation_bits=8,
        float_learning_rate=1e-2,
        steps=3,
    )
    return recipe, train(recipe)


def go_on(first: Recipe, output: Path, **changes: object) -> Recipe:
    """A recipe from what ``first`` made, without any setting of quantization."""
    return replace(make_recipe(Path(first.source).parent), source=str(first.output), output=output, steps=1, **changes)  # type: ignore[arg-type]


def test_it_goes_on_where_the_source_ended(first: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    before, result = first
    again = train(go_on(before, tmp_path / "on"))
    assert again.entry == result.entry
    assert again.entry is not None
    assert again.entry["exclude"] == ["model.layers.0.self_attn.q_proj"]
    assert again.eval_loss_before == result.eval_loss_final  # same weights, quantized once, same learned tensors
    recipe = json.loads((tmp_path / "on" / "recipe.json").read_text())
    assert (recipe["stages"], recipe["row_multiplier"], recipe["learned_scales"]) == (3, "learned", True)


def test_explicit_options_win_and_are_warned_about(
    first: tuple[Recipe, TrainingResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = go_on(first[0], tmp_path / "on")
    arguments = [argument for argument in arguments_of(recipe) if argument != "--quiet"]
    more = ["--stages", "2", "--computed-scales", "--quantize-lm-head", "--exclude", "*.k_proj", "--activation-bits", "0"]
    assert main([*arguments, *more]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "trained with stages 3; training with stages 2 as asked",
        "trained with learned_scales True; training with learned_scales False as asked",
        "trained with skip_lm_head True; training with skip_lm_head False as asked",
        "trained with exclude model.layers.0.self_attn.q_proj; training with exclude *.k_proj as asked",
        "trained with activation_bits 8; training with activation_bits 0 as asked",
    ):
        assert expected in printed
    assert "profile fp32 as asked" not in printed
    assert "now: method fairy2i, stages 2, profile fp32, quantizer greedy, row multiplier learned\n" in printed
    entry = json.loads((tmp_path / "on" / "config.json").read_text())["fairy2i"]
    assert entry == {
        "method": "fairy2i",
        "profile": "fp32",
        "quantizer": "greedy",
        "row_multiplier": "learned",
        "scales": "computed",
        "lm_head": "fairy2i",
        "latent": True,
        "stages": 2,
        "exclude": ["model.layers.0.self_attn.k_proj"],
    }


@pytest.mark.parametrize(
    ("entry", "options", "told"),
    [
        ({"stages": 2}, {"quantizer": "joint", "learned_scales": True}, {"quantizer greedy", "learned_scales False"}),
        ({"quantizer": "joint", "scales": "learned"}, {"quantizer": "greedy"}, {"quantizer joint"}),
        ({"latent": True}, {"profile": "fp32", "stages": 3}, {"profile bf16-reference", "stages 2"}),
        ({"stages": 3}, {"stages": 3, "quantizer": "greedy"}, set()),
    ],
)
def test_what_an_entry_leaves_out_is_the_default(
    tmp_path: Path, entry: dict[str, object], options: dict[str, object], told: set[str]
) -> None:
    recipe = make_recipe(tmp_path, **options)
    edit_json(Path(recipe.source) / "config.json", fairy2i=entry)
    _, warnings = complete_settings(recipe, open_source(recipe.source))
    assert {warning.split("trained with ")[1].split(";")[0] for warning in warnings} == told


def test_another_method_takes_nothing_but_the_weights(first: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    again = train(go_on(first[0], tmp_path / "on", method="ternary"))
    assert again.entry is not None
    assert again.entry["method"] == "ternary"
    assert again.entry["lm_head"] == "float"


def test_a_missing_learned_tensor_is_an_error(
    first: tuple[Recipe, TrainingResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    recipe = go_on(first[0], tmp_path / "on")
    source = tmp_path / "broken"
    shutil.copytree(recipe.source, source)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert main(arguments_of(replace(recipe, source=str(source)))) == 2
    assert "learned tensors are missing, the first is model.layers.0.mlp.up_proj.scales" in capsys.readouterr().err
    edit_json(source / "config.json", fairy2i={"col_multiplier": "learned"})
    assert main(arguments_of(replace(recipe, source=str(source)))) == 2
    assert "8 learned tensors are missing, the first is lm_head.col_multiplier" in capsys.readouterr().err


def test_latent_weights_are_no_teacher(first: tuple[Recipe, TrainingResult], tmp_path: Path) -> None:
    recipe = go_on(first[0], tmp_path / "on", distill=0.5)
    with pytest.raises(OptionError, match=r"name the float model with --teacher"):
        train(recipe)
    with pytest.raises(OptionError, match=r"--teacher .*: is a model of quantization-aware training"):
        train(replace(recipe, source=first[0].source, teacher=str(first[0].output)))
    assert train(replace(recipe, teacher=first[0].source, separator=SEPARATOR)).steps == 1


def test_prepare_leaves_alone_what_the_config_says(first: tuple[Recipe, TrainingResult]) -> None:
    model = AutoModelForCausalLM.from_pretrained(first[0].output, dtype=torch.float32)
    report = prepare(model)
    assert set(report.left) == {"lm_head", "model.layers.0.self_attn.q_proj"}
    assert not isinstance(model.lm_head, QATLinear)


@pytest.mark.parametrize(("learned", "expected"), [(None, 1), (True, 0)])
def test_a_joint_quantizer_without_learned_scales_is_warned_about(
    first: tuple[Recipe, TrainingResult], learned: bool | None, expected: int
) -> None:
    recipe = replace(first[0], exclude=(), learned_scales=learned, quantizer="joint")
    _, warnings = complete_settings(recipe, open_source(recipe.source))
    assert sum("add --learned-scales" in warning for warning in warnings) == expected
    assert complete_settings(replace(recipe, quantizer=None), open_source(recipe.source))[1] == []
