"""lm_head quantized like the layers, with stages of its own: on a text, by rounding, and beside codes of an earlier export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check
from test_calibrate import assert_equals_torch, correlated, dequantized, output_error, write_text
from test_codes_from import contents

from architecture_helpers import save_tiny
from export_helpers import Recorder, assert_same, edit_json, make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.codes.layout import pack, unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.commands import tools
from fairy2i_export.commands.export import main
from fairy2i_export.compile.calibrate.head import calibrate_rows, sensitivity
from fairy2i_export.compile.calibrate.matrix.metric import Statistics
from fairy2i_export.compile.calibrate.text import read_texts
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime.commands.console import USER_ERROR

TOKENS = 600
ON_TEXT: dict[str, Any] = {"calibrate_tokens": TOKENS, "jobs": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("head") / "model")


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return write_text(source.parent / "text")


@pytest.fixture(scope="module")
def earlier(source: Path, text: Path) -> Path:
    """Two stages, tuned, with an int8 head; not rotated, so that transformers can take its parts."""
    out = source.parent / "earlier"
    export(source, out, calibrate=[text], stages=2, calibrate_without="rotation", **ON_TEXT)
    return out


@pytest.fixture(scope="module")
def renewed(source: Path, text: Path, earlier: Path) -> Path:
    """The same with a head of 3 stages, chosen on the text."""
    out = source.parent / "renewed"
    export(source, out, codes_from=earlier, calibrate=[text], lm_head="fairy2i", **ON_TEXT)
    return out


def linears(folder: Path) -> dict[str, QuantizedLinear]:
    return {node.name: unpack(node.operands) for node in read_nodes(folder / "model.onnx")}


def metadata(folder: Path) -> dict[str, str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {entry.key.removeprefix("fairy2i."): entry.value for entry in model.metadata_props}


def stages(folder: Path) -> tuple[set[int], int]:
    """Of the layers, and of lm_head."""
    found = {name: linear.stages for name, linear in linears(folder).items()}
    head = found.pop("lm_head")
    return set(found.values()), head


@pytest.mark.parametrize(("options", "expected"), [({}, 3), ({"lm_head_stages": 2}, 2), ({"lm_head_stages": 4}, 4)], ids=str)
def test_stages_of_its_own(source: Path, text: Path, tmp_path: Path, options: dict[str, Any], expected: int) -> None:
    report = export(source, tmp_path / "out", calibrate=[text], stages=2, lm_head="fairy2i", **ON_TEXT, **options)
    assert not report.warnings
    assert stages(tmp_path / "out") == ({2}, expected)
    said = metadata(tmp_path / "out")
    assert said["lm_head"] == "fairy2i"
    if expected != 2:
        assert said["stages"] == f"2,{expected}"
        assert json.loads(said["stages_map"])["lm_head"] == str(expected)
        assert f"{expected} (1 layer)" in (tmp_path / "out" / "README.md").read_text()


def test_more_stages_in_the_layers_are_enough_for_it(source: Path, text: Path) -> None:
    run = dry_run(source, calibrate=[text], stages=4, lm_head="fairy2i", **ON_TEXT)
    assert run.options.head_stages == 4


def test_without_a_text_it_is_rounded(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"quantizer": "joint", "row_multiplier": "rms", "profile": "fp32", "trained": True}
    export(source, tmp_path / "out", stages=2, lm_head="fairy2i", lm_head_stages=4, **options)
    weight = open_checkpoint(source).read("lm_head.weight")
    (head,) = [node for node in read_nodes(tmp_path / "out" / "model.onnx") if node.name == "lm_head"]
    wanted = pack(quantize(weight, 4, "fp32", quantizer="joint", row_multiplier="rms"))
    assert np.array_equal(head.operands.packed, wanted.packed)
    assert stages(tmp_path / "out") == ({2}, 4)
    export(source, tmp_path / "same", stages=2, lm_head="fairy2i", **options)
    assert stages(tmp_path / "same") == ({2}, 2)


def test_a_head_of_its_own_is_not_in_the_average(source: Path, text: Path, tmp_path: Path) -> None:
    """--bits are kept by the layers, as if lm_head were not there."""
    options: dict[str, Any] = {"calibrate": [text], "bits": 2.5, "calibrate_without": "tuning", **ON_TEXT}
    export(source, tmp_path / "out", lm_head="fairy2i", lm_head_stages=4, **options)
    export(source, tmp_path / "alone", lm_head="int8", **options)
    found = {name: linear.stages for name, linear in linears(tmp_path / "out").items()}
    assert found.pop("lm_head") == 4
    assert found == {name: linear.stages for name, linear in linears(tmp_path / "alone").items()}


def test_the_layers_of_the_earlier_export_stay(earlier: Path, renewed: Path) -> None:
    before, after = linears(earlier), linears(renewed)
    assert after.pop("lm_head").stages == 3
    assert before.keys() == after.keys()
    for name, linear in before.items():
        assert np.array_equal(after[name].codes, linear.codes)
        assert np.array_equal(after[name].row_multiplier, linear.row_multiplier)
    told, tells = (json.loads(metadata(folder)["calibration"]) for folder in (earlier, renewed))
    assert (tells["lm_head"]["tokens"], tells["lm_head"]["text_sha256"]) == (576, told["text_sha256"])
    assert {key: value for key, value in tells.items() if key != "lm_head"} == told


def test_a_new_head_beats_rounding(source: Path, text: Path, earlier: Path, renewed: Path, tmp_path: Path) -> None:
    """Its outputs, on inputs that the quantized model before it gives for another text, against those of the float head."""
    model = dequantized(source, earlier)  # with a float head
    caught: list[torch.Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].reshape(-1, inputs[0].shape[-1])))
    other = write_text(tmp_path / "other", seed=7)
    with torch.no_grad():
        model(torch.from_numpy(read_texts(open_checkpoint(source), [other], TOKENS, 96).ids))
    weight = model.lm_head.weight.detach()
    rounded = quantize(weight.numpy(), 3, "fp32", quantizer="joint", row_multiplier="rms").dequantize("none")
    chosen = linears(renewed)["lm_head"].dequantize("none")
    assert output_error(caught[0], weight, chosen) < 0.9 * output_error(caught[0], weight, rounded)


def test_rows_that_matter_are_kept_better() -> None:
    """Of the two real rows of a complex one, the one that matters gets most of what their common codes can tell."""
    inputs, weight = correlated(60, 3000), torch.randn(80, 60, generator=torch.Generator().manual_seed(1))
    statistics = Statistics(60)
    for half, part in enumerate(inputs[:2000].chunk(2)):
        statistics.add(part, half)
    head = Linear("lm_head", "lm_head.weight", None, 60, 80, "fairy2i", "", stages=2)
    matters = torch.cat([torch.ones(40), torch.full((40,), 1e-4)])
    chosen, alike = (
        calibrate_rows(weight, statistics, head, rows, 2).linear.dequantize("none") for rows in (matters, torch.ones(80))
    )
    heavy, light = slice(0, 40), slice(40, 80)
    errors = {
        (name, rows.start): output_error(inputs[2000:], weight[rows], dense[rows])
        for name, dense in (("chosen", chosen), ("alike", alike))
        for rows in (heavy, light)
    }
    assert errors["chosen", 0] < 0.75 * errors["alike", 0]
    assert errors["alike", 40] < errors["chosen", 40] < 1
    assert errors["alike", 0] == pytest.approx(errors["alike", 40], rel=0.2)


@pytest.mark.parametrize("softcap", [None, 2.5])
def test_how_much_a_logit_matters(softcap: float | None) -> None:
    """The divergence that small independent errors of all logits cause, to second order, is half their squares times this."""
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(600, 12, generator=generator), 0.5 * torch.randn(40, 12, generator=generator)
    found = sensitivity(states, weight, softcap)

    def logs(logits: torch.Tensor) -> torch.Tensor:
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)

    logits = states.double() @ weight.double().T
    for index in (0, 17, 39):
        moved = logits.clone()
        moved[:, index] += 1e-3
        divergence = float((logs(logits).exp() * (logs(logits) - logs(moved))).sum(-1).mean())
        assert float(found[index]) == pytest.approx(2e6 * divergence, rel=5e-3)


def test_a_renewed_model_equals_torch(source: Path, renewed: Path) -> None:
    assert_equals_torch(source, renewed)


@pytest.mark.parametrize(
    ("kind", "settings"), [("llama", {"tie_word_embeddings": True}), ("gemma2", {"tie_word_embeddings": True})]
)
def test_tied_and_rotated_models(
    kind: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head becomes a matrix of its own; verify takes the model's layers and finds no fault with it."""
    model, text = save_tiny(tmp_path / "model", kind, **settings), write_text(tmp_path / "text")
    options: dict[str, Any] = {"calibrate": [text], "calibrate_tokens": 300, "jobs": 1}
    export(model, tmp_path / "first", stages=2, **options)
    export(model, tmp_path / "second", codes_from=tmp_path / "first", lm_head="fairy2i", lm_head_stages=4, **options)
    assert stages(tmp_path / "second") == ({2}, 4)
    tools.main(["verify", str(tmp_path / "second"), "--against", str(model), "--text", str(text), "--tokens", "60"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "exact : torch" in printed
    assert "differ from" not in printed


def test_a_head_that_was_chosen_is_chosen_again(source: Path, text: Path, renewed: Path, tmp_path: Path) -> None:
    """Other stages on the same text; and what becomes of its codes, and of what metadata say, when it is stored as int8."""
    again, int8 = tmp_path / "again", tmp_path / "int8"
    export(source, again, codes_from=renewed, calibrate=[text], lm_head="fairy2i", lm_head_stages=4, **ON_TEXT)
    assert stages(again) == ({2}, 4)
    export(source, int8, codes_from=again, lm_head="int8")
    assert metadata(int8)["stages"] == "2"
    assert "lm_head" not in json.loads(metadata(int8)["calibration"])
    export(source, tmp_path / "kept", codes_from=again, kv_cache="float16")
    assert stages(tmp_path / "kept") == ({2}, 4)
    assert metadata(tmp_path / "kept")["calibration"] == metadata(again)["calibration"]


def test_a_new_head_when_interrupted(source: Path, text: Path, earlier: Path, renewed: Path, tmp_path: Path) -> None:
    """While tensors are written: the head is there already, and the bytes are those of the uninterrupted export."""
    options: dict[str, Any] = {"codes_from": earlier, "calibrate": [text], "lm_head": "fairy2i", **ON_TEXT}
    layers, head = 2, 1
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Recorder(layers + head + 3), **options)
    kept = tmp_path / ".out.partial" / "calibrated"
    assert [path.name for path in kept.glob("*.safetensors")] == ["00002.safetensors"]
    before = (kept / "00002.safetensors").stat().st_mtime_ns
    recorder = Recorder(2)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=recorder, **options)
    assert (kept / "00002.safetensors").stat().st_mtime_ns == before
    export(source, tmp_path / "out", **options)
    assert_same(renewed, tmp_path / "out")


def test_the_text_and_the_stages_decide(source: Path, text: Path, earlier: Path, tmp_path: Path) -> None:
    """An unfinished export of another head is not continued."""
    options: dict[str, Any] = {"codes_from": earlier, "calibrate": [text], "lm_head": "fairy2i", **ON_TEXT}
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out", observer=Recorder(6), **options)
    for changes in ({"lm_head_stages": 2}, {"calibrate": [write_text(tmp_path / "other", seed=5)]}):
        recorder = Recorder(1)
        with pytest.raises(KeyboardInterrupt):
            export(source, tmp_path / "out", observer=recorder, **{**options, **changes})
        assert not any("continuing" in note for note in recorder.notes)
        with pytest.raises(KeyboardInterrupt):
            export(source, tmp_path / "out", observer=Recorder(6), **{**options, **changes})


@pytest.mark.parametrize("backend", [{"backend": "dense"}, {"backend": "matmulnbits"}], ids=str)
def test_other_backends(
    source: Path, renewed: Path, tmp_path: Path, backend: dict[str, Any], text: Path, earlier: Path
) -> None:
    """A new head for another backend at once, or afterwards: the same bytes."""
    options: dict[str, Any] = {"calibrate": [text], "lm_head": "fairy2i", **ON_TEXT}
    export(source, tmp_path / "at once", codes_from=earlier, **options, **backend)
    export(source, tmp_path / "afterwards", codes_from=renewed, **backend)
    found, expected = contents(tmp_path / "at once"), contents(tmp_path / "afterwards")
    assert found == expected


def test_what_a_dry_run_says(source: Path, text: Path, earlier: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"codes_from": earlier, "calibrate": [text], "lm_head": "fairy2i", "lm_head_stages": 4}
    run = dry_run(source, tmp_path / "out", **options, **ON_TEXT)
    whole = dry_run(source, tmp_path / "out", calibrate=[text], lm_head="fairy2i", lm_head_stages=4, stages=2, **ON_TEXT)
    assert 0 < run.calibration_seconds < whole.calibration_seconds
    assert run.estimate.peak_ram_bytes < whole.estimate.peak_ram_bytes
    assert [path.name for path in tmp_path.iterdir()] == []
    report = export(source, tmp_path / "out", **options, **ON_TEXT)
    assert run.device.weights == (report.path / "model.onnx.data").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes_from": "{earlier}"}, "a text can only choose those of a new lm_head beside them; add --lm-head fairy2i"),
        ({"codes_from": "{earlier}", "lm_head": "int4"}, "add --lm-head fairy2i, or leave one of the two out"),
        ({"codes_from": "{earlier}", "lm_head": "fairy2i", "bits": 2.5}, "bits: the layers' stages are those in .*earlier"),
        ({"codes_from": "{earlier}", "lm_head": "fairy2i", "stages": 3}, "stages: the codes in .* were made with 2, got 3"),
        (
            {"codes_from": "{earlier}", "lm_head": "fairy2i", "calibrate_without": ("rotation", "tuning")},
            "calibrate without: what .*earlier has of rotation and tuning stays",
        ),
        (
            {"codes_from": "{earlier}", "lm_head": "fairy2i", "exclude": "lm_head"},
            "those of lm_head, and that is left float",
        ),
        ({"codes_from": "{rounded}", "lm_head": "fairy2i"}, "found those of rounded weights in .*rounded; leave"),
        ({"lm_head_stages": 3}, r"lm_head is not quantized like the layers here \(--lm-head int8\)"),
        (
            {"lm_head_stages": 3, "lm_head": "fairy2i", "exclude": "lm_head"},
            r"not quantized like the layers here \(--exclude\)",
        ),
        ({"lm_head_stages": 5, "lm_head": "fairy2i"}, "lm_head stages: expected a number from 1 to 4, got 5"),
        ({"lm_head_stages": True, "lm_head": "fairy2i"}, "lm_head stages: expected a number from 1 to 4, got True"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_at_once(
    source: Path, text: Path, earlier: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    rounded = tmp_path / "rounded"
    if options.get("codes_from") == "{rounded}":
        export(source, rounded, lm_head="int8", trained=True)
    folders = {"{earlier}": earlier, "{rounded}": rounded}
    given = {"calibrate": [text], **ON_TEXT, **options}
    given = {name: folders.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    for attempt in (export, dry_run):
        with pytest.raises(OptionError, match=message):
            attempt(source, tmp_path / "out", **given)
    assert not list(tmp_path.glob("*out*"))


def test_a_source_that_is_another_one(source: Path, text: Path, earlier: Path, tmp_path: Path) -> None:
    """The same shapes: found out when the files were read, after the head was chosen."""
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"is not what .*earlier was made from"):
        export(other, tmp_path / "out", codes_from=earlier, calibrate=[text], lm_head="fairy2i", **ON_TEXT)


def test_trained_models_are_warned_about(source: Path, tmp_path: Path) -> None:
    """Their lm_head was trained with the stages of the layers; scales that were trained fit no other number."""
    model = make_checkpoint(tmp_path / "model")
    edit_json(model / "config.json", fairy2i={"stages": 2})
    report = export(model, tmp_path / "out", lm_head_stages=3)
    assert stages(tmp_path / "out") == ({2}, 3)
    assert any("trained with stages 2, lm_head included; exporting that with 3" in warning for warning in report.warnings)
    edit_json(model / "config.json", fairy2i={"stages": 2, "scales": "learned"})
    with pytest.raises(OptionError, match="its scales were trained for 2 stages, got 3"):
        export(model, tmp_path / "learned", lm_head_stages=3)


def test_from_the_command_line(
    source: Path, text: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), "-o", str(tmp_path / "out"), "--codes-from", str(earlier), "--calibrate", str(text)]
    command += ["--calibrate-tokens", str(TOKENS), "--lm-head", "fairy2i", "--lm-head-stages"]
    assert main([*command, "2"]) == 0
    assert stages(tmp_path / "out") == ({2}, 2)
    assert main([*command, "7", "--force"]) == USER_ERROR
    assert "lm_head stages: expected a number from 1 to 4, got 7" in capsys.readouterr().err
    assert tools.main(["inspect", str(tmp_path / "out"), "--layers", "lm_head"]) == 0
    assert "lm_head" in capsys.readouterr().out
