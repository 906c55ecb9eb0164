"""The last step of a calibration: the student is the quantized model, and what tuning finds is what the folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check
from test_calibrate import TOKENS, write_text
from test_codes_from import contents
from torch.nn.functional import kl_div, log_softmax

from architecture_helpers import (
    MIXED,
    TOLERANCE,
    exact_session,
    largest_difference,
    reference_logits,
    save_tiny,
    stepwise_logits,
)
from export_helpers import Recorder, assert_same, compute_in_float32, make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.codes.layout import unpack
from fairy2i_export.compile.calibrate import run as calibration
from fairy2i_export.compile.calibrate.store import LayerStore, Tuned
from fairy2i_export.compile.calibrate.tuning.divergence import divergence
from fairy2i_export.compile.calibrate.tuning.run import Schedule, tune
from fairy2i_export.errors import WeightError
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.output.metadata import ModelMetadata
from fairy2i_export.source.checkpoint import open_checkpoint

F32 = npt.NDArray[np.float32]
FORM = {"stages": 2, "lm_head": "float", "embedding": "float32", "jobs": 1}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("gemma2", {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True}),
    ("gemma3_text", {**MIXED, "tie_word_embeddings": False}),
    ("phi3", {"tie_word_embeddings": False}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("olmo2", {}),
]


class Watched:
    """Runs tuning as the export does, with another schedule, and keeps logits [windows, length, vocabulary] around it."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.calls = 0

    def __call__(self, student: Any, teacher: Any, ids: Any, softcap: float | None, schedule: Any, done: Any) -> Tuned:
        def logits(hidden: torch.Tensor, head: torch.Tensor) -> F32:
            with torch.no_grad():
                found = hidden @ head.T
                capped = found if softcap is None else softcap * torch.tanh(found / softcap)
            return np.array(capped.numpy(), np.float32)

        def own() -> F32:
            with torch.no_grad():
                head = student.head if student.head_factor is None else student.head_factor[:, None] * student.head
                return logits(student.hidden(ids), head)

        self.calls += 1
        self.ids, self.teacher, self.before = ids, logits(teacher, student.float_head), own()
        self.tuned = tune(student, teacher, ids, softcap, self.schedule, done)
        self.after = own()
        return self.tuned


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Tuning with steps that are large enough to be seen, in float32 wherever tests run."""
    schedule = Schedule(rate=0.02, windows=1)
    watched = Watched(schedule)
    compute_in_float32(monkeypatch)
    monkeypatch.setattr(calibration, "tune", watched)
    monkeypatch.setattr(calibration, "Schedule", lambda: schedule)
    return watched


def run(folder: Path, ids: npt.NDArray[np.int64]) -> F32:
    return stepwise_logits(exact_session(folder), ids, np.ones_like(ids), ids.shape[1])


def difference(got: F32, expected: F32) -> float:
    return largest_difference(got, expected, np.ones(got.shape[:2], np.int64))


def nats(student: F32, teacher: F32) -> float:
    """Mean KL(teacher || student) of logits over tokens."""
    found, expected = (torch.from_numpy(x.astype(np.float64)).flatten(0, 1).log_softmax(-1) for x in (student, teacher))
    return float(kl_div(found, expected, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("head", ["float", "fairy2i"])
@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[kind for kind, _ in KINDS])
def test_what_is_tuned_is_what_runs(
    kind: str, settings: dict[str, Any], head: str, watched: Watched, tmp_path: Path
) -> None:
    """The student is the model that would be written otherwise; the folder is the student when it is tuned, and better."""
    from transformers import AutoModelForCausalLM

    source, text = save_tiny(tmp_path / "model", kind, **settings), write_text(tmp_path / "text")
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": 300, **FORM, "lm_head": head}
    export(source, tmp_path / "tuned", **options)
    export(source, tmp_path / "plain", **options, calibrate_without="tuning")
    assert watched.calls == 1
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    assert difference(watched.teacher, reference_logits(original, watched.ids, np.ones_like(watched.ids))) < TOLERANCE
    plain, tuned = (run(tmp_path / name, watched.ids) for name in ("plain", "tuned"))
    assert difference(watched.before, plain) < TOLERANCE
    assert difference(watched.after, tuned) < TOLERANCE
    assert difference(plain, tuned) > 50 * TOLERANCE
    assert nats(tuned, watched.teacher) < 0.97 * nats(plain, watched.teacher)
    names = {name for name in open_checkpoint(source).owners if "norm" in name}
    assert set(watched.tuned.norms) == names
    assert set(watched.tuned.rows) == {node.name for node in read_nodes(tmp_path / "tuned" / "model.onnx")}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.5])
def test_the_loss_is_the_divergence(softcap: float | None, factored: bool) -> None:
    """Value and gradient against torch's own in float64, over three parts of the tokens, the last one short."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(600, 12, generator=generator) for _ in range(2))
    heads = [torch.randn(40, 12, generator=generator) for _ in range(2)]
    student.requires_grad_()
    factor = (0.5 + torch.rand(40, generator=generator)).requires_grad_() if factored else None
    found = divergence(student, teacher, *heads, softcap, factor)
    (3 * found).backward()

    def log_probabilities(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        logits = hidden.double() @ head.double().T
        return log_softmax(logits if softcap is None else softcap * torch.tanh(logits / softcap), -1)

    other = student.detach().clone().requires_grad_()
    rows = torch.ones(40, requires_grad=True) if factor is None else factor.detach().clone().requires_grad_()
    wanted = kl_div(
        log_probabilities(other, rows[:, None] * heads[0]),
        log_probabilities(teacher, heads[1]),
        log_target=True,
        reduction="batchmean",
    )
    (3 * wanted).backward()
    assert student.grad is not None
    assert other.grad is not None
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.allclose(student.grad, other.grad, rtol=1e-4, atol=1e-4 * float(other.grad.abs().max()))
    if factor is not None:
        assert rows.grad is not None
        assert torch.allclose(factor.grad, rows.grad, rtol=1e-4, atol=1e-4 * float(rows.grad.abs().max()))
    assert float(divergence(teacher, teacher, heads[1], heads[1], softcap)) == pytest.approx(0, abs=1e-6)


def test_a_loss_that_is_not_finite_is_told() -> None:
    class Broken:
        head = float_head = torch.ones(3, 4)
        head_factor = None
        parameter = torch.nn.Parameter(torch.zeros(4))

        def parameters(self) -> list[Any]:
            return [self.parameter]

        def hidden(self, ids: Any) -> Any:
            return (self.parameter * float("nan")).expand(1, 5, 4)

    ids = np.zeros((2, 5), np.int64)
    with pytest.raises(WeightError, match=r"not finite; leave tuning out \(--calibrate-without tuning\)"):
        tune(Broken(), torch.zeros(2, 5, 4), ids, None, Schedule(), lambda: None)  # type: ignore[arg-type]


def test_the_length_of_tuning() -> None:
    assert [Schedule().steps(windows) for windows in (1, 2, 3, 4, 48)] == [1, 1, 1, 2, 24]
    assert Schedule(epochs=2, windows=3).steps(7) == 4


def test_of_a_long_text_some_windows_are_used() -> None:
    schedule = Schedule(windows=2, most=4)
    assert [schedule.steps(windows) for windows in (3, 4, 5, 400)] == [1, 2, 2, 2]
    assert [schedule.used(windows).tolist() for windows in (1, 4, 6, 400)] == [
        [0],
        [0, 1, 2, 3],
        [0, 1, 3, 4],
        [0, 100, 200, 300],
    ]


def test_a_text_is_not_read_twice_where_it_is_long_enough() -> None:
    schedule = Schedule(epochs=2, windows=2, most=8)
    assert [len(schedule.used(windows)) for windows in (2, 4, 6, 8, 20)] == [2, 4, 6, 8, 8]
    assert [schedule.passes(windows) for windows in (2, 4, 6, 8, 20)] == [4, 8, 8, 8, 8]
    assert [schedule.steps(windows) for windows in (2, 4, 6, 8, 20)] == [2, 4, 4, 4, 4]


def test_a_share_of_a_very_long_text_is_used() -> None:
    schedule = Schedule(epochs=2, windows=2, most=8, share=0.75)
    texts = {windows: schedule.for_text(windows) for windows in (2, 4, 10, 12, 40)}
    assert [len(of_text.used(windows)) for windows, of_text in texts.items()] == [2, 4, 8, 9, 30]
    assert [of_text.passes(windows) for windows, of_text in texts.items()] == [4, 8, 8, 9, 30]
    assert texts[12].used(12).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert texts[40].passes(30) == 30  # of those that are used, all


def test_high_effort_tunes_on_three_quarters_of_a_long_text() -> None:
    high, normal = calibration.SCHEDULES["high"], calibration.SCHEDULES["normal"]
    assert [high.for_text(windows).passes(windows) for windows in (64, 192, 512, 1024)] == [128, 384, 384, 768]
    assert [normal.for_text(windows).passes(windows) for windows in (64, 192, 512, 1024)] == [64, 192, 192, 192]


def test_the_rate_falls_with_stages() -> None:
    schedule = Schedule(rate=4e-3)
    assert [schedule.for_stages(mean).rate for mean in (1, 2, 4)] == pytest.approx([4e-3, 4e-3, 1e-3])
    assert schedule.for_stages(2.25).rate == pytest.approx(4e-3 * (2 / 2.25) ** 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tuning") / "model")


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return write_text(source.parent / "text")


def test_interrupted_while_it_is_tuned(source: Path, text: Path, tmp_path: Path, watched: Watched) -> None:
    """All layers are there then; and when tuning is finished, it is not done again."""
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": TOKENS, **FORM}
    export(source, tmp_path / "whole", **options)
    layers, steps = 2, watched.schedule.steps(6)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Recorder(layers + 2), **options)
    kept = tmp_path / ".out.partial" / "calibrated"
    assert sorted(path.name for path in kept.glob("*.safetensors")) == ["00000.safetensors", "00001.safetensors"]
    recorder = Recorder(layers + steps + 1)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=recorder, **options)
    assert any("continuing an unfinished calibration: 2 layers" in note for note in recorder.notes)
    assert (kept / "tuned.safetensors").exists()
    assert watched.calls == 3
    export(source, tmp_path / "out", **options)
    assert watched.calls == 3
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_the_teacher_of_a_long_text(
    source: Path, text: Path, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that are used and what the float model makes of them belong together."""
    from transformers import AutoModelForCausalLM

    export(source, tmp_path / "all", calibrate=[text], calibrate_tokens=TOKENS, **FORM)
    windows = watched.ids
    few = Schedule(most=2)
    monkeypatch.setattr(calibration, "SCHEDULES", dict.fromkeys(calibration.SCHEDULES, few))
    export(source, tmp_path / "few", calibrate=[text], calibrate_tokens=TOKENS, **FORM)
    assert len(windows) > 2
    assert np.array_equal(watched.ids, windows[few.used(len(windows))])
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    assert difference(watched.teacher, reference_logits(original, watched.ids, np.ones_like(watched.ids))) < TOLERANCE


def test_all_of_the_share_of_a_text_is_run(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning sees only the windows that are used, and takes no share of them again."""
    runs = []

    def counted(student: Any, teacher: Any, ids: Any, softcap: float | None, schedule: Any, done: Any) -> Tuned:
        steps: list[None] = []
        tuned = tune(student, teacher, ids, softcap, schedule, lambda: steps.append(None))
        runs.append((len(ids), len(steps)))
        return tuned

    monkeypatch.setattr(calibration, "tune", counted)
    share = Schedule(epochs=2, windows=1, most=2, share=0.75)
    monkeypatch.setattr(calibration, "SCHEDULES", dict.fromkeys(calibration.SCHEDULES, share))
    export(source, tmp_path / "out", calibrate=[text], calibrate_tokens=TOKENS, **FORM)
    assert runs == [(4, 4)]  # of six windows


def test_steps_that_are_left_out(source: Path, text: Path, tmp_path: Path) -> None:
    """Tuning leaves codes and scales alone, descent is what changes codes."""
    nodes, norms = {}, {}
    for name, without in (("all", ()), ("untuned", ("tuning",)), ("fed back", ("tuning", "descent"))):
        out = tmp_path / name
        export(source, out, calibrate=[text], calibrate_tokens=TOKENS, calibrate_without=without, **FORM)
        nodes[name] = {node.name: unpack(node.operands) for node in read_nodes(out / "model.onnx")}
        model = onnx.load(out / "model.onnx")
        norms[name] = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer if "norm.weight" in x.name}
    for layer, untuned in nodes["untuned"].items():
        tuned, fed_back = nodes["all"][layer], nodes["fed back"][layer]
        assert np.array_equal(tuned.codes, untuned.codes)
        assert np.array_equal(tuned.scales, untuned.scales)
        assert tuned.row_multiplier is not None
        assert untuned.row_multiplier is not None
        change = np.abs(tuned.row_multiplier / untuned.row_multiplier - 1).max()
        assert 0 < change < 0.05
        assert 0 < np.mean(untuned.codes != fed_back.codes) < 0.5
    for name, ones in norms["untuned"].items():
        assert np.array_equal(ones, np.ones_like(ones))  # rotated
        assert 0 < np.abs(norms["all"][name] - 1).max() < 0.05


def test_other_forms_of_a_tuned_model(tmp_path: Path, watched: Watched) -> None:
    """--codes-from takes its norms too, less what the graph adds to Gemma's, with the very same bits."""
    model, text = save_tiny(tmp_path / "model", "gemma2", **MIXED), write_text(tmp_path / "text")
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": 300, **FORM}
    export(model, tmp_path / "first", **options)
    for form in ({"lm_head": "int8"}, {"backend": "dense"}):
        export(model, tmp_path / "fresh", **{**options, **form}, force=True)
        export(model, tmp_path / "again", codes_from=tmp_path / "first", **form, force=True)
        assert contents(tmp_path / "again") == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("said", "tuned"),
    [
        ({}, False),
        ({"calibration": '{"method": "error-feedback-1", "text_sha256": "0", "tokens": 576}'}, False),  # of earlier versions
        ({"calibration": '{"method": "error-feedback-2", "without": ["tuning"], "tuned": false}'}, False),
        ({"calibration": '{"method": "error-feedback-2", "tuned": true}'}, True),
        ({"calibration": "edited"}, False),
        ({"calibration": "[]"}, False),
    ],
)
def test_models_say_whether_they_were_tuned(said: dict[str, str], tuned: bool) -> None:
    assert ModelMetadata({f"fairy2i.{key}": value for key, value in said.items()}).is_tuned == tuned


def test_what_was_tuned_is_kept(tmp_path: Path) -> None:
    """In a store that is opened anew, but not in one of something else."""
    weight = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    linear = CalibratedLinear.of(weight, quantize(weight, 2, "fp32", quantizer="joint", row_multiplier="rms"), 0.5)
    rows, norm = np.linspace(0.9, 1.1, 8, dtype=np.float32), np.linspace(-1, 1, 6, dtype=np.float32)
    store = LayerStore(tmp_path / "store", {"model": "a"})
    store.write(0, {"layer": linear, "other": linear})
    assert store.tuned is None
    store.write_tuned(Tuned({"layer": rows}, {"norm.weight": norm}))
    for opened in (store, LayerStore(tmp_path / "store", {"model": "a"})):
        assert len(opened) == 1  # what was tuned is no layer
        assert opened.tuned is not None
        assert np.array_equal(opened.tuned.rows["layer"], rows)
        assert np.array_equal(opened.tuned.norms["norm.weight"], norm)
        assert (len(opened.tuned.rows), len(opened.tuned.norms)) == (1, 1)
        before = linear.quantized.row_multiplier
        found, untouched = opened.linear("layer").quantized, opened.linear("other").quantized
        assert before is not None
        assert np.array_equal(found.row_multiplier, before * rows)
        assert np.array_equal(untouched.row_multiplier, before)
        assert np.array_equal(found.codes, linear.quantized.codes)
    assert LayerStore(tmp_path / "store", {"model": "b"}).tuned is None
