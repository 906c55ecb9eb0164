"""--bits: what a matrix matters, measured and compared with what really happens; the split; and the option itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export_helpers import Recorder, assert_same, make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.export import main
from fairy2i_export.compile.calibrate.stages.allocation import allocate, expected_stages
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import OptionError, WeightError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.output.workspace import partial_folder
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime.commands.console import USER_ERROR

TOKENS = 600


def problem(count: int, seed: int) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Matrices of a few sizes, with losses that fall by a factor of about 3 from stage to stage."""
    rng = np.random.default_rng(seed)
    sizes = {f"m{i}": int(rng.choice([192, 576, 1536])) * 576 for i in range(count)}
    weight = {name: float(rng.lognormal(0, 1.5)) * size for name, size in sizes.items()}
    return sizes, {
        name: [x * float(v) for v in 3.3 ** -np.arange(4) * rng.uniform(0.9, 1.1, 4)] for name, x in weight.items()
    }


def spent(sizes: dict[str, int], stages: dict[str, int]) -> float:
    return sum(sizes[name] * count for name, count in stages.items()) / sum(sizes.values())


@pytest.mark.parametrize("bits", [1, 1.4, 2, 2.25, 3.1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_split_is_better(seed: int, bits: float) -> None:
    sizes, losses = problem(6, seed)
    total = sum(sizes.values())
    least = min(
        sum(losses[name][count - 1] for name, count in zip(sizes, counts, strict=True))
        for counts in itertools.product(range(1, 5), repeat=6)
        if sum(size * count for size, count in zip(sizes.values(), counts, strict=True)) <= bits * total
    )
    found = allocate(sizes, losses, bits)
    assert list(found) == list(sizes)
    assert spent(sizes, found) <= bits
    assert sum(losses[name][count - 1] for name, count in found.items()) == pytest.approx(least, rel=1e-12)


def test_the_average_is_used_and_never_exceeded() -> None:
    sizes, losses = problem(210, 0)
    before = np.inf
    for bits in np.linspace(1, 4, 31):
        found = allocate(sizes, losses, float(bits))
        assert bits - 0.01 < spent(sizes, found) <= bits + 1e-9
        loss = sum(losses[name][count - 1] for name, count in found.items())
        assert loss <= before  # more bits never cost
        before = loss
    assert set(allocate(sizes, losses, 4.0).values()) == {4}
    assert set(allocate(sizes, losses, 1.0).values()) == {1}


def test_sizes_without_a_common_divisor() -> None:
    """The unit is rounded then, to the safe side, and the split stays close to the best."""
    rng = np.random.default_rng(1)
    sizes = {f"m{i}": int(rng.integers(10**7, 10**8)) for i in range(40)}
    losses = {name: [float(size * v) for v in 3.0 ** -np.arange(4)] for name, size in sizes.items()}
    found = allocate(sizes, losses, 2.5)
    assert 2.49 < spent(sizes, found) <= 2.5


def test_what_matters_more_gets_more() -> None:
    sizes = dict.fromkeys(("a", "b", "c"), 100)
    losses = {name: [weight * v for v in (1, 0.3, 0.09, 0.03)] for name, weight in (("a", 1), ("b", 30), ("c", 5))}
    assert allocate(sizes, losses, 2) == {"a": 1, "b": 3, "c": 2}
    assert spent(sizes, expected_stages(sizes, 7 / 3)) == pytest.approx(7 / 3)


# --- the measurement

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def write_text(path: Path, words: int = 4000, seed: int = 0) -> Path:
    drawn = np.random.default_rng(seed).zipf(1.3, words) % 87 + 3
    path.write_text(" ".join(f"w{i}" for i in drawn))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("choice") / "model", num_hidden_layers=3, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return write_text(source.parent / "text.txt")


def measured(source: Path, text: Path, tokens: int = 2304, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Sensitivities and weights by module, and the windows."""
    from fairy2i_export.compile.calibrate.run import skeleton_of
    from fairy2i_export.compile.calibrate.stages.sensitivity import measure
    from fairy2i_export.compile.prepare import prepare
    from fairy2i_export.request.request import Request

    # the source's own weights: the same model is computed by transformers
    plain: Any = {"calibrate_without": ("rotation",), "lm_head": "fairy2i", "jobs": 1}
    request = Request(calibrate=(text,), calibrate_tokens=tokens, **plain, **changes)
    prepared = prepare(source, source.parent / "nowhere", request)
    linears = {linear.name: linear for linear in prepared.plan.rewritten}
    done: list[int] = []
    ids = prepared.text.ids  # type: ignore[union-attr]
    cap = prepared.decoder.logits_softcap
    found = list(measure(skeleton_of(prepared), linears, linears["lm_head"], cap, ids, done.append))
    assert {name for name, *_ in found} == linears.keys()
    assert sum(done) == 2 * prepared.decoder.layers
    return {name: x for name, x, _ in found}, {name: weight for name, _, weight in found}, ids


def divergence_of(model: Any, ids: Any, change: dict[str, Any]) -> float:
    """KL per token from the model to itself with other weights, computed by transformers."""
    with torch.no_grad():
        before = torch.log_softmax(model(torch.from_numpy(ids)).logits, -1)
        kept = {}
        for name, error in change.items():
            module = model.get_submodule(name)
            kept[name] = module.weight
            module.weight = torch.nn.Parameter(module.weight + error.to(module.weight.dtype))  # unties a tied head
        after = torch.log_softmax(model(torch.from_numpy(ids)).logits, -1)
        for name, weight in kept.items():
            model.get_submodule(name).weight = weight
        return float((before.exp() * (before - after)).sum(-1).mean())


def models(kind: str, source: Path, tmp_path: Path) -> Path:
    if kind == "llama":
        return source
    from architecture_helpers import MIXED, save_tiny

    settings = {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True}
    return save_tiny(tmp_path / "model", kind, **settings)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_predicted_and_real_divergence(kind: str, source: Path, text: Path, tmp_path: Path) -> None:
    """A small random error of one layer's weights at a time: the second-order prediction against the divergence itself."""
    from transformers import AutoModelForCausalLM

    checkpoint = models(kind, source, tmp_path)
    sensitivities, weights, ids = measured(checkpoint, text)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    predicted, real = [], []
    for name, sensitivity in sensitivities.items():
        weight = weights[name].double()
        error = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        error *= 0.02 * weight.square().mean().sqrt()
        predicted.append(sensitivity.divergence(error))
        real.append(divergence_of(model, ids, {name: error}))
    ratio = np.array(predicted) / np.array(real)
    # scores that are capped make attention an average, through which equal errors of many tokens add up
    averaged = np.array([kind == "gemma2" and name.endswith(("k_proj", "v_proj")) for name in sensitivities])
    assert ratio[~averaged].min() > 0.5
    assert ratio.min() > 0.2
    assert ratio.max() < 2
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, real)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert max(real) > 5 * min(real)  # there is an order to find


def test_expected_losses_are_those_of_real_codes(source: Path, text: Path) -> None:
    """What calibrating a matrix leaves in its metric, against what was expected without doing it, at each number of stages."""
    from fairy2i_export.compile.calibrate.matrix.calibrate import calibrate_matrix
    from fairy2i_export.compile.calibrate.matrix.metric import Statistics

    sensitivities, weights, _ = measured(source, text)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.up_proj"):
        sensitivity, weight = sensitivities[name], weights[name]
        expected = sensitivity.losses(weight)
        statistics = Statistics(weight.shape[1])
        statistics.grams[0], statistics.tokens[0] = sensitivity.gram, 1
        metric = statistics.metric(name)
        for stages in (1, 2, 3, 4):
            codes = calibrate_matrix(weight.clone(), metric, stages, 3).linear
            left = sensitivity.divergence(weight - torch.from_numpy(codes.dequantize("none")))
            assert 0.4 < expected[stages - 1] / left < 2.5, (name, stages)


def test_gradients_are_those_of_the_whole_model(source: Path, text: Path) -> None:
    """Layer by layer as in one piece: with every window's likelihood differentiated by transformers and torch at once."""
    from transformers import AutoModelForCausalLM

    sensitivities, _, ids = measured(source, text)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
    sums: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)  # the same tokens are drawn

    def watch(name: str) -> Any:
        def note(_: Any, __: Any, output: Any) -> None:
            output.register_hook(
                lambda g: sums.update({name: sums.get(name, 0) + g.flatten(0, -2).double().square().sum(0)})
            )

        return note

    for name in sensitivities:
        model.get_submodule(name).register_forward_hook(watch(name))
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.requires_grad_())
    for window in ids:
        logs = torch.log_softmax(model(torch.from_numpy(window[None])).logits, -1)
        drawn = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator)
        logs.flatten(0, 1).gather(1, drawn).sum().backward()
    for name, sensitivity in sensitivities.items():
        expected = sums[name] / ids.size
        assert torch.allclose(sensitivity.gradients, expected, rtol=1e-3, atol=1e-6 * float(expected.max())), name


def test_damaged_weights_are_named(source: Path, text: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    shape = open_checkpoint(source).info(name).shape
    damaged = make_checkpoint(tmp_path / "model", replace={name: np.full(shape, 3e38, np.float32)})
    with pytest.raises(WeightError, match=r"model\.layers\.1: its outputs are not finite on the calibration text"):
        export(damaged, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, bits=2.5, jobs=1)
    assert not list(tmp_path.glob("*out*"))


# --- the option


def stages_in(folder: Path) -> dict[str, int]:
    return {node.name: node.operands.stages for node in read_nodes(folder / "model.onnx")}


def average(folder: Path) -> float:
    nodes = read_nodes(folder / "model.onnx")
    sizes = {node.name: 4 * node.operands.n * node.operands.m for node in nodes}
    return spent(sizes, stages_in(folder))


@pytest.fixture(scope="module")
def folder(source: Path, text: Path) -> Path:
    out = source.parent / "mixed"
    arguments = [
        str(source),
        "-o",
        str(out),
        "--calibrate",
        str(text),
        "--calibrate-tokens",
        str(TOKENS),
        "--bits",
        "2.25",
        "-q",
        "-j1",
    ]
    assert main(arguments) == 0
    return out


def test_layers_differ_and_the_average_is_kept(source: Path, text: Path, folder: Path, tmp_path: Path) -> None:
    assert 2.0 < average(folder) <= 2.25
    assert len(set(stages_in(folder).values())) > 1
    again = {"codes_from": folder, "kv_cache": "float16", "lm_head": "int4"}
    export(source, tmp_path / "again", **again)
    assert stages_in(tmp_path / "again") == stages_in(folder)
    planned = dry_run(source, tmp_path / "x", calibrate=[text], calibrate_tokens=TOKENS, bits=2.25)
    assert planned.options.bits == 2.25
    data = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert planned.estimate.output_bytes == pytest.approx(data, rel=0.1)


def test_the_head_takes_part_if_it_is_calibrated(source: Path, text: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, bits=3, lm_head="fairy2i", jobs=1)
    assert "lm_head" in stages_in(tmp_path / "out")
    assert 2.8 < average(tmp_path / "out") <= 3


def test_an_interrupted_one_keeps_its_choice(
    source: Path, text: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once: after the measurement, and while layers are calibrated."""
    from fairy2i_export.compile.calibrate.stages import sensitivity

    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": TOKENS, "bits": 2.25, "jobs": 1}
    out = tmp_path / "mixed"
    for steps in (7, 2):  # 2 x 3 layers are measured first
        with pytest.raises(KeyboardInterrupt):
            export(source, out, observer=Recorder(steps), **options)
        assert (partial_folder(out) / "stages.json").exists()
        monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured again"))
    export(source, out, **options)
    assert_same(folder, out)
    assert not partial_folder(out).exists()


def test_the_choice_of_another_average_is_not_taken(source: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": TOKENS, "jobs": 1}
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(source, out, observer=Recorder(7), bits=2.25, **options)
    (partial_folder(out) / "stages.json").write_text("{")  # nor one that is damaged
    with pytest.raises(KeyboardInterrupt):
        export(source, out, observer=Recorder(7), bits=2.25, **options)
    before = json.loads((partial_folder(out) / "stages.json").read_text())["stages"]
    export(source, out, bits=3.5, **options)
    assert 3.3 < average(out) <= 3.5
    assert stages_in(out) != before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 0.9}, "bits: expected a number from 1 to 4, got 0.9"),
        ({"bits": 4.5}, "bits: expected a number from 1 to 4, got 4.5"),
        ({"bits": float("nan")}, "bits: expected a number from 1 to 4, got nan"),
        ({"bits": "2.25"}, "bits: expected a number from 1 to 4, got '2.25'"),
        ({"bits": True}, "bits: expected a number from 1 to 4, got True"),
        ({"bits": 2.25, "stages": 2}, "leave one of the two out"),
        ({"bits": 2.25, "calibrate": ()}, "none was given .got bits 2.25.; add --calibrate TEXT, or ask for --stages N"),
        ({"bits": 2.25, "calibrate": (), "codes_from": "nowhere"}, "add --calibrate TEXT"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_at_once(
    source: Path, text: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    for attempt in (export, dry_run):
        with pytest.raises(OptionError, match=message):
            attempt(source, tmp_path / "out", **{"calibrate": [text], **given})
    assert not list(tmp_path.glob("*out*"))


def test_the_command_refuses_it_without_a_traceback(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source), "-o", str(tmp_path / "out"), "--bits", "2.25"]) == USER_ERROR
    printed = capsys.readouterr().err
    assert "--calibrate TEXT" in " ".join(printed.split())
    assert "Traceback" not in printed
