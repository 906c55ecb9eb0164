"""Training from a calibrated export: the start is that model, to the bit where bits are stored, and the result exports again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file, save_file

import fairy2i_runtime
from export_helpers import edit_json
from fairy2i_export import export, quantize
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.commands.tools import main
from fairy2i_export.errors import CheckpointError, Fairy2iError, OptionError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.hub import open_source
from fairy2i_export.train import Recipe, train
from fairy2i_export.train.calibrated.latents import latents_of
from fairy2i_export.train.inputs import open_inputs
from fairy2i_export.train.loop.groups import parameter_groups
from fairy2i_export.train.loop.models import load_student
from fairy2i_export.train.qat.modules import QATLinear
from fairy2i_runtime.measure.perplexity import model_scorer
from training_helpers import SEPARATOR, arguments_of, make_recipe, make_source, write_text

F32 = npt.NDArray[np.float32]


def calibrated(source: Path, out: Path, text: Path, **options: Any) -> Path:
    export(source, out, calibrate=[text], calibrate_tokens=600, jobs=1, **{"stages": 2, "lm_head": "float", **options})
    return out


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that starts from a calibrated folder."""
    folder = tmp_path_factory.mktemp("start")
    recipe = make_recipe(folder)
    text = write_text(folder / "calibration.txt", 60, seed=3)
    calibrated(Path(recipe.source), folder / "calibrated", text)
    return replace(recipe, from_calibrated=str(folder / "calibrated"), learning_rate=None, separator=SEPARATOR)


def kept(recipe: Recipe, output: Path) -> Path:
    """The result of a run whose every step is worse than its start, which is therefore kept."""
    worse = replace(recipe, output=output, learning_rate=30.0, schedule="constant", patience=1, eval_every=1)
    assert train(worse).steps == 0
    return output


def operands(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        node.name: {key: getattr(node.operands, key) for key in ("packed", "scales", "row_multiplier", "col_multiplier")}
        for node in read_nodes(folder / "model.onnx")
    }


def assert_same_layers(folder: Path, other: Path) -> None:
    first, second = operands(folder), operands(other)
    assert list(first) == list(second)
    for name, found in first.items():
        for key, value in found.items():
            np.testing.assert_array_equal(value, second[name][key], err_msg=f"{name} {key}")


def loss_of(folder: Path, recipe: Recipe) -> float:
    """Nats per token of the exported folder on the blocks that training evaluates."""
    blocks = np.fromfile(recipe.output / "data" / "eval.bin", np.uint16).reshape(-1, 32)
    model = fairy2i_runtime.load(folder, kernel="exact", threads=1)
    score = model_scorer(model)
    ends = [score([int(token) for token in block]) for block in blocks]
    wanted = [block[:-1] != 2 for block in blocks]  # what follows an end of text is not predicted
    return -float(np.mean(np.concatenate([end[keep] for end, keep in zip(ends, wanted, strict=True)])))


def random_layer(stages: int, columns: bool, seed: int = 0) -> QuantizedLinear:
    """Codes that nothing but chance has chosen."""
    rng = np.random.default_rng(seed)
    n, m = 22, 34
    return QuantizedLinear(
        rng.integers(0, 4, (stages, 2, n, m)).astype(np.uint8),
        (rng.uniform(0.2, 1.5, (stages, 2, 2)) * 0.6 ** np.arange(stages)[:, None, None]).astype(np.float32),
        "fp32",
        rng.uniform(0.02, 0.3, 2 * n).astype(np.float32),
        rng.uniform(0.5, 2, 2 * m).astype(np.float32) if columns else None,
    )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("inside", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_latents_have_the_codes(stages: int, inside: float, columns: bool) -> None:
    layer = random_layer(stages, columns)
    weight = np.random.default_rng(1).standard_normal((44, 68)).astype(np.float32) * 0.1
    latent = latents_of(layer, weight, inside=inside)
    again = quantize(
        latent,
        stages,
        "fp32",
        quantizer="joint",
        row_multiplier=layer.row_multiplier,
        col_multiplier=layer.col_multiplier,
        scales=layer.scales,
    )
    np.testing.assert_array_equal(again.codes, layer.codes)
    dense = layer.dequantize("none")
    if inside == 0:
        np.testing.assert_allclose(latent, dense, rtol=0, atol=1e-6 * np.abs(dense).max())
    else:  # nearer to the weight than the points are, and further the more they may
        near, far = latents_of(layer, weight, inside=inside / 2), latent
        distances = [float(np.linalg.norm(x - weight)) for x in (far, near, dense)]
        assert distances[0] < distances[1] < distances[2]


def test_a_weight_inside_of_its_cell_is_approached_by_the_share() -> None:
    weight = np.random.default_rng(1).standard_normal((44, 68)).astype(np.float32)
    layer = quantize(weight, 2, "fp32", quantizer="joint", row_multiplier="rms")
    dense = layer.dequantize("none")
    for inside in (0.25, 0.75):
        expected = dense + np.float32(inside) * (weight - dense)
        np.testing.assert_allclose(latents_of(layer, weight, inside=inside), expected, atol=2e-6)


def test_points_that_coincide_stand_for_the_same() -> None:
    layer = random_layer(2, False)
    layer.scales[1] = 0  # any code of the second stage
    latent = latents_of(layer, None)
    again = quantize(latent, 2, "fp32", quantizer="joint", row_multiplier=layer.row_multiplier, scales=layer.scales)
    np.testing.assert_array_equal(again.dequantize("none"), layer.dequantize("none"))
    layer.scales[1] = np.nan
    with pytest.raises(CheckpointError, match=r"w: .* codes .* are those of no weight"):
        latents_of(layer, None, "w")


def test_the_student_is_the_calibrated_model(start: Recipe) -> None:
    inputs = open_inputs(start)
    model, report = load_student(inputs.checkpoint, inputs.recipe)
    assert report is not None
    found = operands(Path(str(start.from_calibrated)))
    assert set(report.replaced) == set(found)
    assert set(report.left) == {"lm_head"}
    source = load_file(Path(start.source) / "model.safetensors")
    for name, operand in found.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QATLinear)
        np.testing.assert_array_equal(layer.scales.detach(), operand["scales"])
        np.testing.assert_array_equal(layer.row_multiplier.detach(), operand["row_multiplier"])
        assert layer.unit == pytest.approx(float(operand["row_multiplier"].mean()))
        # the codes are not those of the weights: that is what calibration is for
        weight = source[f"{name}.weight"].astype(np.float32)
        rounded = quantize(
            weight, 2, "fp32", quantizer="joint", row_multiplier=operand["row_multiplier"], scales=operand["scales"]
        )
        assert (rounded.dequantize("none") != layer.dequantized_weight().numpy()).mean() > 0.05
    for group in parameter_groups(model, inputs.recipe):
        assert group["lr"] == pytest.approx(2e-4 * group["unit"])
    units = {id(p): group["unit"] for group in parameter_groups(model, inputs.recipe) for p in group["params"]}
    assert units[id(layer.weight)] == units[id(layer.row_multiplier)] == layer.unit
    assert units[id(layer.scales)] == units[id(model.lm_head.weight)] == 1


@pytest.mark.parametrize("options", [{"lm_head": "int8"}, {"lm_head": "fairy2i", "stages": 3}], ids=["int8", "fairy2i"])
def test_what_is_kept_of_the_start_exports_to_the_same_bytes(start: Recipe, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = calibrated(
        Path(start.source), tmp_path / "calibrated", Path(start.source).parent / "calibration.txt", **options
    )
    result = kept(replace(start, from_calibrated=str(folder)), tmp_path / "out")
    report = export(result, tmp_path / "again", jobs=1)
    assert not [warning for warning in report.warnings if "trained" in warning]
    assert_same_layers(folder, tmp_path / "again")
    models = [onnx.load(path / "model.onnx", load_external_data=False) for path in (folder, tmp_path / "again")]
    shapes = [{i.name: (i.data_type, list(i.dims)) for i in model.graph.initializer} for model in models]
    assert shapes[0] == shapes[1]  # head and embedding as they were stored
    sizes = [(path / "model.onnx.data").read_bytes() for path in (folder, tmp_path / "again")]
    assert sizes[0] == sizes[1]


def test_the_first_loss_is_that_of_the_export(start: Recipe, tmp_path: Path) -> None:
    recipe = replace(start, output=tmp_path / "out", steps=2)
    result = train(recipe)
    assert result.eval_loss_before == pytest.approx(loss_of(Path(str(start.from_calibrated)), recipe), abs=2e-4)
    assert result.history[0]["step"] == 0


def test_training_makes_it_better_and_goes_on(start: Recipe, tmp_path: Path) -> None:
    recipe = replace(start, output=tmp_path / "out", learning_rate=2e-2, distill=0.5, steps=12, eval_every=4)
    result = train(recipe)
    assert result.entry is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss_final is not None
    assert result.eval_loss_final < result.eval_loss_before - 0.1
    assert {key: result.entry[key] for key in ("stages", "profile", "quantizer", "row_multiplier", "scales", "lm_head")} == {
        "stages": 2,
        "profile": "fp32",
        "quantizer": "joint",
        "row_multiplier": "learned",
        "scales": "learned",
        "lm_head": "float",
    }
    logged = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
    assert max(logged) == pytest.approx(2e-2)
    export(recipe.output, tmp_path / "onnx", jobs=1)
    assert result.eval_loss_final == pytest.approx(loss_of(tmp_path / "onnx", recipe), abs=2e-4)
    further = replace(make_recipe(Path(start.source).parent), source=str(recipe.output), output=tmp_path / "on", steps=1)
    again = train(further)
    assert again.eval_loss_before == result.eval_loss_final
    assert again.entry == result.entry


def test_an_interrupted_run_goes_on(start: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(start, output=tmp_path / "whole", steps=5, save_every=2, eval_data=())
    train(recipe)
    from fairy2i_export.train.loop.trainer import QATTrainer

    step = QATTrainer.training_step

    def interrupted(self: QATTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    again = replace(recipe, output=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(QATTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert train(again).resumed_from == 2
    one, other = (load_file(path / "model.safetensors") for path in (recipe.output, again.output))
    assert all(np.array_equal(array, other[name]) for name, array in one.items())


def add_columns(folder: Path, seed: int = 0) -> None:
    """Give two kinds of layers column multipliers, as tuning may."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    rng = np.random.default_rng(seed)
    for node in model.graph.node:
        if node.name.endswith(("o_proj", "down_proj")):
            size = next(a.i for a in node.attribute if a.name == "K")
            values = rng.uniform(0.8, 1.25, size).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{node.name}.col_multiplier"))
            node.input[5] = f"{node.name}.col_multiplier"
    onnx.save(model, folder / "model.onnx")


def test_column_multipliers_come_along(start: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(str(start.from_calibrated), folder)
    add_columns(folder)
    recipe = replace(start, from_calibrated=str(folder))
    export(kept(recipe, tmp_path / "out"), tmp_path / "again", jobs=1)
    first, second = operands(folder), operands(tmp_path / "again")
    for name, found in first.items():
        expected = found["col_multiplier"]
        given = np.ones_like(second[name]["col_multiplier"]) if expected is None else expected
        np.testing.assert_array_equal(second[name]["col_multiplier"], given)
        np.testing.assert_array_equal(second[name]["packed"], found["packed"])
    result = train(replace(recipe, output=tmp_path / "on", learning_rate=2e-2))
    assert result.entry is not None
    assert result.entry["col_multiplier"] == "learned"
    export(tmp_path / "on", tmp_path / "trained", jobs=1)
    moved = operands(tmp_path / "trained")
    assert all((found["col_multiplier"] != second[name]["col_multiplier"]).any() for name, found in moved.items())
    assert result.eval_loss_final == pytest.approx(
        loss_of(tmp_path / "trained", replace(recipe, output=tmp_path / "on")), abs=2e-4
    )


def rotate(source: Path, target: Path) -> None:
    """The same model in another basis of its residual stream: norms folded, embedding and head no longer one matrix."""
    shutil.copytree(source, target)
    tensors = {name: array.astype(np.float64) for name, array in load_file(source / "model.safetensors").items()}
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * tensors["model.norm.weight"]
    tensors["model.norm.weight"] = np.ones(32)
    for reads, norm in (("self_attn.{}_proj", "input_layernorm"), ("mlp.{}_proj", "post_attention_layernorm")):
        for name in ("q", "k", "v") if "attn" in reads else ("gate", "up"):
            key = f"model.layers.0.{reads.format(name)}.weight"
            tensors[key] = tensors[key] * tensors[f"model.layers.0.{norm}.weight"] @ turn
        tensors[f"model.layers.0.{norm}.weight"] = np.ones(32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name] @ turn
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        tensors[name] = turn.T @ tensors[name]
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, target / "model.safetensors")
    edit_json(target / "config.json", tie_word_embeddings=False)


@pytest.mark.parametrize("lm_head", ["float", "int8"])
def test_a_rotated_model_is_taken_from_the_folder(tmp_path: Path, lm_head: str) -> None:
    make_source(tmp_path / "source", tie_word_embeddings=True)
    rotate(tmp_path / "source", tmp_path / "rotated")
    write_text(tmp_path / "train.txt", 60, seed=1)
    write_text(tmp_path / "eval.txt", 6, seed=2)
    folder = calibrated(tmp_path / "rotated", tmp_path / "calibrated", tmp_path / "train.txt", lm_head=lm_head)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    facts = {prop.key: prop for prop in model.metadata_props}
    facts["fairy2i.source_sha256"].value = open_source(str(tmp_path / "source")).sha256()
    onnx.helper.set_model_props(
        model, {**{key: prop.value for key, prop in facts.items()}, "fairy2i.rotation": "orthogonal"}
    )
    onnx.save(model, folder / "model.onnx")
    recipe = make_recipe(tmp_path, from_calibrated=str(folder), learning_rate=1e-2, distill=1.0, steps=6, eval_every=3)
    result = train(recipe)
    assert result.eval_loss_before == pytest.approx(loss_of(folder, recipe), rel=1e-3 if lm_head == "int8" else 1e-5)
    assert result.eval_loss_final is not None
    assert json.loads((recipe.output / "config.json").read_text())["tie_word_embeddings"] is False
    # int8 rounds what was trained
    export(recipe.output, tmp_path / "again", jobs=1, lm_head="float")
    assert result.eval_loss_final == pytest.approx(loss_of(tmp_path / "again", recipe), rel=1e-5)


@pytest.mark.parametrize("rotated", [True, False])
def test_a_shared_matrix_of_embedding_and_head_starts_as_it_is(tmp_path: Path, rotated: bool) -> None:
    make_source(tmp_path / "source", tie_word_embeddings=True)
    write_text(tmp_path / "train.txt", 60, seed=1)
    write_text(tmp_path / "eval.txt", 6, seed=2)
    folder = calibrated(
        tmp_path / "source",
        tmp_path / "calibrated",
        tmp_path / "train.txt",
        lm_head="int8",
        calibrate_without=() if rotated else ("rotation",),
    )
    metadata = {prop.key: prop.value for prop in onnx.load(folder / "model.onnx", load_external_data=False).metadata_props}
    assert metadata["fairy2i.embedding"] == "shared"
    assert ("fairy2i.rotation" in metadata) == rotated
    recipe = make_recipe(tmp_path, from_calibrated=str(folder), learning_rate=1e-2, distill=1.0, steps=6, eval_every=3)
    result = train(recipe)
    assert result.eval_loss_before == pytest.approx(loss_of(folder, recipe), rel=1e-3)
    config = json.loads((recipe.output / "config.json").read_text())
    assert config["tie_word_embeddings"] is not rotated
    export(recipe.output, tmp_path / "again", jobs=1, lm_head="float", embedding="float32")  # int8 rounds what was trained
    assert result.eval_loss_final == pytest.approx(loss_of(tmp_path / "again", recipe), rel=1e-5)


def other_model(recipe: Recipe, folder: Path) -> Recipe:
    make_source(folder / "other", hidden_size=40)
    return replace(recipe, source=str(folder / "other"))


def changed_weights(recipe: Recipe, folder: Path) -> Recipe:
    shutil.copytree(recipe.source, folder / "other")
    tensors = load_file(folder / "other" / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * 2}, folder / "other" / "model.safetensors")
    return replace(recipe, source=str(folder / "other"))


def trained_source(recipe: Recipe, folder: Path) -> Recipe:
    shutil.copytree(recipe.source, folder / "other")
    edit_json(folder / "other" / "config.json", fairy2i={"stages": 2})
    return replace(recipe, source=str(folder / "other"))


def not_calibrated(recipe: Recipe, folder: Path) -> Recipe:
    export(recipe.source, folder / "rounded", jobs=1)
    return replace(recipe, from_calibrated=str(folder / "rounded"))


def two_numbers(recipe: Recipe, folder: Path) -> Recipe:
    shutil.copytree(str(recipe.from_calibrated), folder / "mixed")
    model = onnx.load(folder / "mixed" / "model.onnx", load_external_data=False)
    attribute = next(a for node in model.graph.node for a in node.attribute if a.name == "stages")
    attribute.i = 3
    onnx.save(model, folder / "mixed" / "model.onnx")
    return replace(recipe, from_calibrated=str(folder / "mixed"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda recipe, folder: replace(recipe, from_calibrated=str(folder)), "expected a folder that fairy2i-export wrote"),
        (not_calibrated, "expected a calibrated model, found one whose codes come from rounding"),
        (two_numbers, "has layers of 2 and of 3 stages"),
        (other_model, "it was made from another model"),
        (changed_weights, "give the source that it was calibrated from"),
        (trained_source, "needs the float model that was calibrated"),
        (lambda recipe, _: replace(recipe, stages=3), "--stages: the calibrated model decides it, 2, got 3"),
        (
            lambda recipe, _: replace(recipe, learned_scales=False),
            "--learned-scales/--computed-scales: the calibrated model",
        ),
        (lambda recipe, _: replace(recipe, method="ternary"), "--method: the calibrated model decides it"),
        (lambda recipe, _: replace(recipe, exclude=("*.q_proj",)), "--include, --exclude: with --from-calibrated"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(start: Recipe, tmp_path: Path, spoil: Any, message: str) -> None:
    with pytest.raises(Fairy2iError) as caught:
        train(spoil(replace(start, output=tmp_path / "out"), tmp_path))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_command_line(start: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(start, output=tmp_path / "out", learning_rate=1e-3, steps=1)
    assert main([*arguments_of(recipe), "--from-calibrated", str(start.from_calibrated)]) == 0
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["save_dtype"] == "float32"
    assert main([*arguments_of(replace(recipe, output=tmp_path / "two")), "--from-calibrated", str(tmp_path / "none")]) == 2
    assert "found no model.onnx in it" in capsys.readouterr().err
    with pytest.raises(OptionError, match="the calibrated model decides it, 'joint', got 'greedy'"):
        train(replace(recipe, quantizer="greedy", output=tmp_path / "two"))
