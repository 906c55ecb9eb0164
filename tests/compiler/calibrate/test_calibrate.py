"""--calibrate: codes that keep outputs, packed as they were found, again the same after an interruption."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check
from safetensors.torch import load_file, save_file

from architecture_helpers import (
    MIXED,
    PROMPT,
    TOLERANCE,
    exact_session,
    largest_difference,
    random_ids,
    reference_logits,
    save_tiny,
    stepwise_logits,
    take_parts,
)
from export_helpers import Recorder, assert_same, edit_json, make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.codes.layout import GRID_CHOICES, GRID_STEPS, pack, unpack
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE
from fairy2i_export.commands import export as cli
from fairy2i_export.commands import tools as tools_cli
from fairy2i_export.compile.calibrate import walk
from fairy2i_export.compile.calibrate.matrix.aim import RIDGES, Ridge
from fairy2i_export.compile.calibrate.matrix.calibrate import calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.grid import on_grid
from fairy2i_export.compile.calibrate.matrix.metric import Metric, Statistics
from fairy2i_export.compile.calibrate.streams import FloatLayer
from fairy2i_export.compile.calibrate.text import read_texts
from fairy2i_export.errors import OptionError, WeightError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime import core

TOKENS = 600


def write_text(path: Path, words: int = 4000, seed: int = 0, vocabulary: int = 90) -> Path:
    """Words of the test tokenizer, drawn from a skewed distribution so that inputs are correlated."""
    drawn = np.random.default_rng(seed).zipf(1.3, words) % (vocabulary - 3) + 3
    path.write_text(" ".join(f"w{i}" for i in drawn))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("calibrate") / "model")


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return write_text(source.parent / "text.txt")


@pytest.fixture(scope="module")
def folder(source: Path, text: Path) -> Path:
    """Without rotation: what is neither layer nor norm is as in the source."""
    out, options = source.parent / "out", {"calibrate_tokens": TOKENS, "calibrate_without": "rotation"}
    export(source, out, calibrate=[text], lm_head="float", jobs=1, **options)
    return out


def correlated(features: int, tokens: int = 2000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    return torch.randn(tokens, features, generator=generator) @ mixing * (0.1 + torch.rand(features, generator=generator))


def metric_of(inputs: torch.Tensor) -> Metric:
    statistics = Statistics(inputs.shape[1])
    for index, part in enumerate(inputs.split(500)):
        statistics.add(part, index % 2)
    return statistics.metric("layer")


def output_error(inputs: torch.Tensor, weight: torch.Tensor, dense: np.ndarray[Any, Any]) -> float:
    wanted = inputs @ weight.T
    return float((wanted - inputs @ torch.from_numpy(dense).T).norm() / wanted.norm())


@pytest.mark.parametrize("features", [2, 3, 5, 64, 140])
def test_sums_over_inputs(features: int) -> None:
    """Of every pair of inputs, whatever parts they are computed in, for each half of the text; numpy's in float64 are right."""
    inputs = correlated(features, 900).reshape(3, 300, features)
    statistics = Statistics(features)
    for index, part in enumerate(inputs):
        statistics.add(part[None], index % 2)
    for half, parts in enumerate((inputs[[0, 2]], inputs[[1]])):
        rows = parts.reshape(-1, features).numpy().astype(np.float64)
        assert np.allclose(statistics.mean(half).numpy(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    rows = inputs.reshape(-1, features).numpy().astype(np.float64)
    assert np.allclose(statistics.mean().numpy(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_the_factor_inverts_the_metric() -> None:
    metric = metric_of(correlated(40))
    product = metric.factor.T.double() @ metric.factor.double() @ metric.hessian.double()
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-4)
    assert torch.equal(metric.factor, metric.factor.triu())
    assert sorted(metric.columns.tolist()) == list(range(40))
    assert (metric.columns[1::2] == metric.columns[0::2] + 20).all()
    pairs = metric.diagonal.reshape(-1, 2).sum(axis=1)
    assert (np.diff(pairs) <= 0).all()  # the heaviest first


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_outputs_are_kept_better_than_by_rounding(stages: int) -> None:
    """More than 64 pairs, so that feedback crosses a block; on inputs that were not used for it."""
    inputs = correlated(140)
    weight = torch.randn(60, 140, generator=torch.Generator().manual_seed(1))
    found = calibrate_matrix(weight, metric_of(inputs[:1500]), stages, 3)
    rounded = quantize(weight.numpy(), stages, "fp32", quantizer="joint", row_multiplier="rms").dequantize("none")
    dense = found.linear.dequantize("none")
    assert output_error(inputs[1500:], weight, dense) < {1: 0.97}.get(stages, 0.8) * output_error(
        inputs[1500:], weight, rounded
    )
    assert found.error == pytest.approx(output_error(inputs[:1500], weight, dense), rel=0.2)  # damping is part of it


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_scales_are_those_of_a_grid_that_dot_has(stages: int) -> None:
    """Whole steps, few enough: "dot" then rounds activations, and no weights."""
    inputs = correlated(140)
    weight = torch.randn(60, 140, generator=torch.Generator().manual_seed(1))
    found = calibrate_matrix(weight, metric_of(inputs[:1500]), stages, 1).linear
    sums = np.abs(found.scales.astype(np.float64)).sum(axis=(0, 1))
    counts = range(GRID_STEPS[stages - 1] - GRID_CHOICES + 1, GRID_STEPS[stages - 1] + 1)
    steps = [found.scales * (count / sums.max()) for count in counts]
    assert min(np.abs(s - np.rint(s)).max() for s in steps) < 1e-4
    whole = np.clip(np.rint(inputs[1500:1540].numpy() * 40), -127, 127).astype(np.float32)
    whole[:, [0, 32, 64]] = 127  # in every block, so that activations are not rounded either
    packed = pack(found)
    layer = core.Linear(packed.packed, packed.scales, 140, 60, row_multiplier=packed.row_multiplier, kernel="dot")
    outputs = layer(whole)
    exact = whole.astype(np.float64) @ found.dequantize("none").astype(np.float64).T
    assert np.abs(outputs - exact).max() < 1e-5 * np.abs(exact).max()


def test_scales_of_u_and_w_part_where_one_row_of_two_matters() -> None:
    """Both then make up one row, like the stages of one matrix; a grid that they are put on too early would keep them alike."""
    inputs = correlated(140)
    weight = torch.randn(60, 140, generator=torch.Generator().manual_seed(1))
    alike = calibrate_matrix(weight, metric_of(inputs[:1500]), 2, 3)
    weight[30:] *= 0.05
    found = calibrate_matrix(weight, metric_of(inputs[:1500]), 2, 3)
    assert found.error < 0.48 * alike.error


def test_on_a_grid_codes_stand_for_different_values() -> None:
    """These scales are on one where -21 + 32 - 11 = 21 - 32 + 11, so another one is taken although none of it is as near."""
    wanted = np.array([[[20, 36], [21, 37]], [[32, 6], [32, 6]], [[9, 18], [11, 18]]], np.float32)
    found = on_grid(wanted, np.eye(12))
    assert np.abs(found / wanted - 1).max() < 0.1
    assert not np.allclose(found, wanted, rtol=1e-3)
    codes = np.indices((4, 4, 4)).reshape(3, -1)
    for matrix in range(2):
        values = found[:, matrix, 0] @ CODE_RE[codes] + 1j * (found[:, matrix, 1] @ CODE_IM[codes])
        apart = np.abs(values[:, None] - values) + np.eye(64) * 100
        assert apart.min() > 0.1
    told_apart = wanted.copy()
    told_apart[2, 1, 0] = 10
    np.testing.assert_allclose(on_grid(told_apart, np.eye(12)), told_apart, rtol=1e-6)  # nothing to be changed


@pytest.mark.parametrize("scales", [np.zeros((2, 2, 2), np.float32), np.array([[[1, 1], [1, 1e-4]]], np.float32)])
def test_scales_without_a_grid_stay(scales: np.ndarray) -> None:
    assert on_grid(scales, np.eye(scales.size)) is scales


def regression(inputs: torch.Tensor, missing: torch.Tensor) -> tuple[Ridge, torch.Tensor]:
    """A ridge on inputs [tokens, 2m], and sums of missing outputs [tokens, 2n] times inputs, in two halves of the tokens."""
    statistics = Statistics(inputs.shape[1])
    sums = []
    for half, (part, wanted) in enumerate(zip(inputs.chunk(2), missing.chunk(2), strict=True)):
        statistics.add(part, half)
        sums.append(wanted.T @ part)
    return Ridge(statistics), torch.stack(sums)


def test_the_aim_makes_up_for_what_inputs_can_tell() -> None:
    """What earlier layers changed in the inputs is made up for, on tokens that were not used for it."""
    inputs = correlated(60, 4000)
    changed = inputs @ (torch.eye(60) + 0.3 * torch.randn(60, 60, generator=torch.Generator().manual_seed(2)) / 60**0.5)
    weight = torch.randn(20, 60, generator=torch.Generator().manual_seed(1))
    wanted = inputs @ weight.T
    missing = wanted - changed @ weight.T
    ridge, sums = regression(changed[:2000], missing[:2000])
    (aim,) = ridge.aims([weight], [sums])
    before, after = ((wanted - changed @ found.T)[2000:].norm() for found in (weight, aim))
    assert float(after) < 0.35 * float(before)
    # the same as solving the regression with numpy, at one of the strengths that can be chosen, and taking a share of it
    gram = (changed[:2000].T @ changed[:2000]).double().numpy()
    change, misses = (aim - weight).numpy(), []
    for strength in RIDGES:
        solution = np.linalg.solve(gram + strength * np.trace(gram) / 2 / 60 * np.eye(60), sums.sum(0).double().numpy().T).T
        share = (solution * change).sum() / (solution**2).sum()
        misses.append(np.abs(change - min(share, 1) * solution).max())
    assert min(misses) < 1e-3


def test_what_is_found_among_noise_is_shrunk() -> None:
    """Where outputs miss as much in every direction of the inputs, no strength of a ridge does as well as a share does."""
    generator = torch.Generator().manual_seed(4)
    inputs, fresh = correlated(60, 1200).split(600)
    gram = inputs.T @ inputs
    truth = torch.linalg.solve(torch.linalg.cholesky(gram).T, 5 * torch.randn(60, 200, generator=generator)).T
    ridge, sums = regression(inputs, inputs @ truth.T + 5 * torch.randn(600, 200, generator=generator))
    (change,) = ridge.aims([torch.zeros(200, 60)], [sums])

    def missed(found: torch.Tensor) -> float:
        return float((fresh @ (found - truth).T).norm())

    mean = gram.trace() / 60 * torch.eye(60)
    ridges = [torch.linalg.solve(gram + strength * mean, sums.sum(0).T).T for strength in np.geomspace(1e-4, 30, 40)]
    assert missed(change) < 0.97 * min(map(missed, ridges)) < 0.9 * missed(torch.zeros(200, 60))


def test_noise_is_not_learned() -> None:
    """Outputs that miss something which inputs say nothing about: the weight stays, where least squares would change it."""
    inputs = correlated(60, 400)
    weight = torch.randn(20, 60, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(400, 20, generator=torch.Generator().manual_seed(3))
    ridge, sums = regression(inputs, noise)
    change = ridge.aims([weight], [sums])[0] - weight
    learned = torch.linalg.solve(inputs.T @ inputs, (noise.T @ inputs).T).T
    assert float((inputs @ change.T).norm()) < 0.2 * float((inputs @ learned.T).norm())


def test_inputs_that_are_not_finite_are_refused() -> None:
    statistics = Statistics(4)
    statistics.add(torch.tensor([[1.0, 2.0, float("inf"), 0.0]]), 0)
    with pytest.raises(WeightError, match=r"layer: its inputs are not finite"):
        statistics.metric("layer")


@pytest.mark.parametrize("size", [1e18, 1e37, float("inf")])
def test_outputs_that_overflow_are_refused(size: float) -> None:
    with pytest.raises(WeightError, match=r"layers\.0\.down: expected weights whose outputs .*overflows in float32"):
        calibrate_matrix(torch.full((8, 40), size), metric_of(correlated(40)), 2, 1, "layers.0.down")


def test_inputs_that_overflow_are_told_by_the_layer(tmp_path: Path) -> None:
    """Where the float model is computed without an overflow, but squares of what a layer reads are not."""
    source = make_checkpoint(tmp_path / "model")
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] *= 1e15
    save_file(tensors, path)
    text = write_text(tmp_path / "text.txt")
    with pytest.raises(WeightError, match=r"model\.layers\.0\.mlp\.down_proj: its inputs are not finite"):
        export(source, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, jobs=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "size"), [("o_proj", 1e20), ("v_proj", 1e19), ("k_proj", 1e20)])
def test_weights_that_overflow_in_attention_are_named(tmp_path: Path, name: str, size: float) -> None:
    """Queries and keys come first, and what attention makes of them cannot be squared then."""
    source = make_checkpoint(tmp_path / "model")
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    tensors[f"model.layers.0.self_attn.{name}.weight"] *= size
    save_file(tensors, path)
    text = write_text(tmp_path / "text.txt")
    with pytest.raises(WeightError, match=rf"model\.layers\.0\.self_attn\.{name}: expected weights whose outputs"):
        export(source, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, jobs=1)
    assert not (tmp_path / "out").exists()


def test_dead_inputs_do_no_harm() -> None:
    inputs = correlated(40)
    inputs[:, 3:9] = 0
    weight = torch.randn(20, 40, generator=torch.Generator().manual_seed(1))
    assert calibrate_matrix(weight, metric_of(inputs), 4, 3).error < 0.1
    assert np.isfinite(calibrate_matrix(weight, metric_of(torch.zeros(9, 40)), 4, 3).linear.dequantize("none")).all()


def test_every_layer_of_a_model_beats_rounding(source: Path, text: Path, folder: Path) -> None:
    """Outputs of each layer on the calibration text, of the inputs that it has in the calibrated model."""
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model = dequantized(source, folder)
    nodes = read_nodes(folder / "model.onnx")
    caught: dict[str, torch.Tensor] = {}
    for node in nodes:
        model.get_submodule(node.name).register_forward_pre_hook(
            lambda _, x, name=node.name: caught.update({name: x[0].reshape(-1, x[0].shape[-1])})
        )
    ids = read_texts(open_checkpoint(source), [text], TOKENS, 96).ids
    with torch.no_grad():
        model(torch.from_numpy(ids))
        assert len(nodes) == 14
        for node in nodes:
            weight = exact.get_submodule(node.name).weight
            rounded = quantize(weight.numpy(), 4, "fp32", quantizer="joint", row_multiplier="rms").dequantize("none")
            calibrated = unpack(node.operands).dequantize("none")
            assert output_error(caught[node.name], weight, calibrated) < output_error(caught[node.name], weight, rounded)


def test_what_a_layer_read_is_forgotten_before_the_next(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is several times as large as the hidden states of a long text."""
    made: list[weakref.ref[FloatLayer]] = []

    def make(*arguments: Any) -> FloatLayer:
        assert all(earlier() is None for earlier in made)
        layer = FloatLayer(*arguments)
        made.append(weakref.ref(layer))
        return layer

    monkeypatch.setattr(walk, "FloatLayer", make)
    export(source, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, calibrate_without="tuning", jobs=1)
    assert len(made) == 2


def test_the_model_says_how_it_was_made(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    said = json.loads(metadata["fairy2i.calibration"])
    assert (said["tokens"], said["tuned"], said["without"]) == (576, True, ["rotation"])  # 6 windows of 96
    assert (metadata["fairy2i.stages"], metadata["fairy2i.row_multiplier"]) == ("4", "calibrated")


def dequantized(source: Path, folder: Path) -> Any:
    """The source's transformers model with the layers and norms of an exported one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    return take_parts(model, folder)


def assert_equals_torch(source: Path, folder: Path) -> None:
    ids = random_ids(1)
    mask = np.ones_like(ids)
    expected = reference_logits(dequantized(source, folder), ids, mask)
    assert largest_difference(stepwise_logits(exact_session(folder), ids, mask, PROMPT), expected, mask) < TOLERANCE


def test_onnxruntime_equals_torch(source: Path, folder: Path) -> None:
    assert_equals_torch(source, folder)


def test_verify_and_ppl_take_the_layers_of_the_model(
    source: Path, text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools_cli.main(["verify", str(folder), "--against", str(source), "--text", str(text), "--tokens", "90"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "found by calibration" in printed
    assert "norms were tuned" in printed
    assert "exact : torch" in printed
    assert "differ from" not in printed  # neither codes from the source, nor logits from torch
    command = [
        "ppl",
        str(folder),
        "--text",
        str(text),
        "--against",
        str(source),
        "--tokens",
        "90",
        "--json",
        "--kernel",
        "exact",
        "--protocol",
        "sliding",
    ]
    assert tools_cli.main(command) == 0
    printed = capsys.readouterr()
    assert "own dequantized layers" in printed.err
    assert "norms were tuned" in printed.err
    for difference in json.loads(printed.out)["against"]["differences"]:
        assert abs(difference["log_ratio"]) < 1e-4


def test_the_report_says_what_it_compares_with(
    source: Path, text: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    command = ["report", str(folder), "--against", str(source), "--text", str(text), "--tokens", "60", "-o", str(page)]
    assert tools_cli.main(command) == 0
    assert "torch multiplies by the model's own dequantized layers" in capsys.readouterr().out
    written = html.unescape(page.read_text(encoding="utf-8"))
    assert "torch multiplies by the model's own dequantized layers" in written
    assert "lets weights change more to keep what layers put out" in written
    assert "all 4 stages together" in written
    assert "after stage" not in written


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True}),
        ("gemma3_text", {**MIXED, "tie_word_embeddings": False}),
        ("phi3", {"tie_word_embeddings": False}),
        ("qwen2", {"tie_word_embeddings": False}),
    ],
)
def test_other_architectures(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Masks, rotary tables and fused matrices come from transformers; lm_head is calibrated too."""
    model = save_tiny(tmp_path / "model", kind, **settings)
    text = write_text(tmp_path / "text")
    # not rotated; with half of the tokens a layer of phi3 lies on the limit of lut
    options = {"calibrate_tokens": 600, "calibrate_without": "rotation"}
    report = export(model, tmp_path / "out", calibrate=[text], lm_head="fairy2i", jobs=1, **options)
    assert not report.warnings
    assert report.rewritten[-1].name == "lm_head"
    assert_equals_torch(model, tmp_path / "out")


@pytest.mark.parametrize("backend", ["fairy2i", "dense"])
def test_an_interrupted_calibration_is_continued(source: Path, text: Path, tmp_path: Path, backend: str) -> None:
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": TOKENS, "jobs": 1, "backend": backend}
    export(source, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Recorder(1), **options)
    assert len(list((tmp_path / ".out.partial" / "calibrated").glob("*.safetensors"))) == 1
    recorder = Recorder()
    export(source, tmp_path / "out", observer=recorder, **options)
    assert any("continuing an unfinished calibration: 1 layers" in note for note in recorder.notes)
    assert_same(tmp_path / "whole", tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()


COMMAND = """
import os, sys
from fairy2i_export.compile import run as exporter

class Dies(exporter.Observer):
    left = int(sys.argv[4])
    def advance(self, amount):
        Dies.left -= 1
        if not Dies.left:
            os._exit(9)

exporter.export(sys.argv[1], sys.argv[2], calibrate=[sys.argv[3]], calibrate_tokens=600, jobs=1, observer=Dies())
"""


def test_a_killed_one_too(source: Path, text: Path, tmp_path: Path) -> None:
    """Dead without a chance to clean up, while tensors are written: all calibrated layers are used again."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, str(source), str(out), str(text), "6"]
    assert subprocess.run(command, check=False).returncode == 9
    recorder = Recorder()
    export(source, out, calibrate=[text], calibrate_tokens=TOKENS, jobs=1, observer=recorder)
    assert any("unfinished calibration: 2 layers" in note for note in recorder.notes)
    export(source, tmp_path / "whole", calibrate=[text], calibrate_tokens=TOKENS, jobs=1)
    assert_same(tmp_path / "whole", out)


def test_another_text_starts_anew(source: Path, text: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", write_text(tmp_path / "other", seed=1)
    with pytest.raises(KeyboardInterrupt):
        export(source, out, calibrate=[text], calibrate_tokens=TOKENS, jobs=1, observer=Recorder(1))
    recorder = Recorder(1)
    with pytest.raises(KeyboardInterrupt):
        export(source, out, calibrate=[other], calibrate_tokens=TOKENS, jobs=1, observer=recorder)
    assert not any("unfinished calibration" in note for note in recorder.notes)
    assert any("the options are others" in note for note in recorder.notes)


def no_text(source: Path, text: Path) -> dict[str, Any]:
    text.write_text(" \n")
    return {}


def short_text(source: Path, text: Path) -> dict[str, Any]:
    text.write_text("w3 " * 100)
    return {}


def binary(source: Path, text: Path) -> dict[str, Any]:
    text.write_bytes(b"\xff\xfe\x00")
    return {}


def missing(source: Path, text: Path) -> dict[str, Any]:
    text.unlink()
    return {}


def trained(source: Path, text: Path) -> dict[str, Any]:
    edit_json(source / "config.json", fairy2i={"stages": 2})
    return {}


Spoil = Callable[[Path, Path], dict[str, Any]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_text, "the file holds no text"),
        (short_text, "100 tokens, expected at least 2 windows of 96"),
        (binary, "expected a UTF-8 text file"),
        (missing, "expected a UTF-8 text file"),
        (trained, "config.json says that this model was trained"),
        (lambda source, text: {"calibrate_tokens": 100}, "expected at least 192"),
        (lambda source, text: {"profile": "bf16-reference"}, "profile: calibration uses fp32"),
        (lambda source, text: {"row_multiplier": "rms"}, "row multiplier: calibration finds its own"),
        (lambda source, text: {"quantizer": "greedy"}, "quantizer: calibration uses joint"),
        (lambda source, text: {"calibrate": (), "calibrate_tokens": 500}, "there is no text; add --calibrate"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(spoil: Spoil, message: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    text = write_text(tmp_path / "text")
    options = {"calibrate": [text], **spoil(source, text)}
    with pytest.raises(OptionError) as caught:
        export(source, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, source: Path, text: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"needs torch and transformers, .* pip install '\.\[train\]' in a checkout"):
        export(source, tmp_path / "out", calibrate=[text])


def test_command_line(source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(source), "-o", str(tmp_path / "out"), "--jobs", "1"]
    assert cli.main([*arguments, "--calibrate", str(text), "--calibrate-tokens", "300", "--stages", "2"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert cli.main([*arguments, "--force"]) == 0
    assert "--calibrate TEXT" in capsys.readouterr().err
    assert cli.main([*arguments, "--force", "--dry-run", "--calibrate", str(text)]) == 0
    assert "this export, at most" in capsys.readouterr().out
    assert cli.main([str(source / "model.onnx"), "--calibrate", str(text)]) == 2
