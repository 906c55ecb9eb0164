"""Which kernels hold the numerics contract: judged with right verdicts, recorded by conversions, and obeyed by every host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fairy2i_runtime
from export_helpers import compute_in_float32, make_checkpoint, tensors_of
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_export.compile.result.kernel_check import kernel_for_hosts, kernel_warning
from fairy2i_export.output.contract.kernels import Verdict, judge_kernels, recorded
from fairy2i_export.output.contract.layers import LIMITS, check_layers, families_of
from fairy2i_export.output.contract.logits import compare
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_runtime.errors import ModelFolderError, OptionError
from fairy2i_runtime.folder import open_folder
from runtime_models import stories_folder

IDS = np.random.default_rng(0).integers(3, 90, 60)
OUTLIERS = 400.0  # times as large as other channels


def with_outliers(directory: Path) -> Path:
    """A checkpoint that computes about the same and whose layers get inputs with two huge channels, as plain models do."""
    from export_helpers import config_of

    tensors = dict(tensors_of(config_of()))
    for name, array in tensors.items():
        if name.endswith("input_layernorm.weight"):
            array[[5, 40]] *= OUTLIERS
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            array[:, [5, 40]] /= OUTLIERS
    return make_checkpoint(directory, tensors=tensors)


def metadata_of(folder: Path) -> dict[str, str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rough")
    export(with_outliers(out / "model"), out / "out", stages=4, profile="fp32", trained=True)
    return out / "out"


def test_a_model_without_outliers_holds_with_every_kernel() -> None:
    folder = stories_folder()
    model = fairy2i_runtime.load(folder, kernel="exact")
    ids = np.array(model.tokenizer.encode("Once upon a time there was a little dog named Max. He liked to play."))
    found = judge_kernels(folder / "model.onnx", read_nodes(folder / "model.onnx"), ids)
    assert found.holding == ("exact", "lut", "dot")
    for kernel, logits in found.logits.items():
        expected = fairy2i_runtime.load(folder, kernel=kernel).logits(ids.tolist())
        assert np.array_equal(logits, expected), kernel
    lut = found.verdicts["lut"]
    assert lut.comparison == compare(found.logits["lut"], found.logits["exact"], ids)
    assert lut.excess == max(error / LIMITS[key] for x in found.layers for key, error in x.errors.items() if key[0] == "lut")


def test_outliers_are_too_much_for_eight_bits(rough: Path) -> None:
    model_file = rough / "model.onnx"
    found = judge_kernels(model_file, read_nodes(model_file), IDS)
    assert found.verdicts["exact"].holds
    lut = found.verdicts["lut"]
    assert not lut.holds
    beyond = [x for x in found.layers if x.errors["lut", "real"] > 0.03 or x.errors["lut", "gaussian"] > 0.015]
    assert lut.failing == len(beyond) > 0
    assert lut.worst == max(beyond, key=lambda layer: layer.excess("lut")).name
    assert f"{lut.failing} of 15 layers exceed the limits, the worst is {lut.worst}" in lut.problems[0]


def test_groups_of_layers_give_what_one_run_gives(rough: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory bounds how many layers are listened to at once, and must not change what is found."""
    from fairy2i_export.output.contract import layers

    model_file = rough / "model.onnx"
    nodes = read_nodes(model_file)
    at_once = list(check_layers(model_file, nodes, IDS[None]))
    monkeypatch.setattr(layers, "_TAPPED_BYTES", 100_000)
    assert len(list(layers._groups(nodes, IDS.size))) > 3
    in_groups = list(check_layers(model_file, nodes, IDS[None]))
    assert [(x.name, x.errors) for x in in_groups] == [(x.name, x.errors) for x in at_once]


def test_kernels_of_an_instruction_set() -> None:
    assert families_of("scalar") == ("exact", "lut", "dot")
    assert families_of(None) == ("exact", "lut", "dot")
    with pytest.raises(fairy2i_runtime.Fairy2iRuntimeError, match="doesnotexist"):
        families_of("doesnotexist")


def verdict(kernel: str, *, failing: int = 0, log_ratio: float = 0.0, error: float = 0.0) -> Verdict:
    comparison = None
    if kernel != "exact":
        ids = np.arange(3)
        comparison = compare(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32), ids)
        object.__setattr__(comparison, "perplexity", float(np.exp(log_ratio)) * comparison.reference_perplexity)
        object.__setattr__(comparison, "perplexity_error", error)
    return Verdict(kernel, 7, failing, "layer", 2.0 if failing else 0.5, comparison)


@pytest.mark.parametrize(
    ("lut", "exact", "chosen"),
    [
        ({}, {}, None),
        ({"failing": 1}, {}, "exact"),
        ({"log_ratio": 0.006}, {}, "exact"),
        ({"log_ratio": -0.006}, {}, "exact"),
        ({"log_ratio": 0.004}, {}, None),
        ({"log_ratio": 0.02, "error": 0.01}, {}, None),  # chance explains that much
        ({"failing": 1}, {"failing": 1}, None),  # nothing better
    ],
)
def test_the_choice(lut: dict[str, Any], exact: dict[str, Any], chosen: str | None) -> None:
    verdicts = {"exact": verdict("exact", **exact), "lut": verdict("lut", **lut), "dot": verdict("dot")}
    assert kernel_for_hosts(verdicts) == chosen
    warning = kernel_warning(verdicts)
    assert (warning is None) == verdicts["lut"].holds
    if chosen:
        assert f"the folder says that {chosen} is to be run" in str(warning)
        assert "exact, dot" in str(warning)


def test_names_are_recorded_in_one_order() -> None:
    assert (recorded(["dot", "exact"]), recorded([])) == ("exact,dot", "")


@pytest.mark.parametrize(("outliers", "rotated"), [(False, True), (True, False), (True, True)])
def test_a_conversion_records_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outliers: bool, rotated: bool
) -> None:
    """Outliers are too much for the default kernel, unless a rotation has spread them."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = with_outliers(tmp_path / "model") if outliers else make_checkpoint(tmp_path / "model")
    # the model knows nothing, so what perplexity changes by on 96 tokens is chance: it is to be the same wherever this runs
    compute_in_float32(monkeypatch)
    text, other = tmp_path / "text", tmp_path / "other"
    for seed, path in ((1, text), (3, other)):
        path.write_text(" ".join(f"w{i}" for i in np.random.default_rng(seed).integers(3, 90, 4000)))
    without = () if rotated else ("rotation",)
    report = export(
        source, tmp_path / "out", calibrate=[text], calibrate_tokens=600, calibrate_without=without, stages=2, jobs=1
    )
    coarse = outliers and not rotated
    holding = [kernel for kernel, found in report.verdicts.items() if found.holds]
    assert metadata_of(tmp_path / "out")["fairy2i.kernels"] == ",".join(holding)
    options = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options.get("fairy2i.kernel") == ("exact" if coarse else None)
    assert any("kernel lut is too coarse" in warning for warning in report.warnings) == coarse
    assert ("lut" in holding) != coarse
    assert main(["verify", str(tmp_path / "out")]) == 0  # it passes its own check
    assert main(["verify", str(tmp_path / "out"), "--text", str(other)]) == 0  # and on words that it was not converted with


def choosing(folder: Path, tmp_path: Path, kernel: Any) -> Path:
    """A copy of a folder that names a kernel."""
    copy = tmp_path / "chosen"
    shutil.copytree(folder, copy)
    path = copy / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["fairy2i.kernel"] = kernel
    path.write_text(json.dumps(config))
    return copy


def test_the_runtime_obeys_the_folder(rough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    folder = choosing(rough, tmp_path, "exact")
    logits = {kernel: fairy2i_runtime.load(rough, kernel=kernel).logits(IDS.tolist()) for kernel in ("lut", "exact", "dot")}
    assert not np.array_equal(logits["lut"], logits["exact"])

    def found(**options: Any) -> Any:
        return fairy2i_runtime.load(folder, **options).logits(IDS.tolist())

    assert np.array_equal(found(), logits["exact"])
    assert np.array_equal(found(kernel="lut"), logits["lut"])  # an explicit choice comes first
    monkeypatch.setenv("FAIRY2I_KERNEL", "dot")
    assert np.array_equal(found(), logits["dot"])  # then the environment
    assert np.allclose(found(use_library=False), logits["exact"], atol=1e-3)


def test_genai_obeys_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not exist is refused there: so the entry arrives."""
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    for kernel, works in (("exact", True), ("nosuchkernel", False)):
        folder = choosing(stories_folder(), tmp_path / kernel, kernel)
        shutil.copy(fairy2i_runtime.library_path(), folder)
        if works:
            genai.Model(str(folder))
        else:
            with pytest.raises(Exception, match="nosuchkernel"):
                genai.Model(str(folder))


@pytest.mark.parametrize(
    ("kernel", "error"), [(3, ModelFolderError), (["exact"], ModelFolderError), ("nosuch", OptionError)]
)
def test_a_senseless_choice_is_refused_by_name(tmp_path: Path, kernel: Any, error: type[Exception]) -> None:
    folder = choosing(stories_folder(), tmp_path, kernel)
    with pytest.raises(error, match=r"fairy2i\.kernel"):
        fairy2i_runtime.load(folder)


def test_verify_judges_the_kernel_that_runs(
    rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAIRY2I_KERNEL", raising=False)
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{i}" for i in IDS))
    assert main(["verify", str(rough), "--text", str(text)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "FAILED: kernel lut:" in printed
    assert "run it with --kernel exact" in printed
    assert main(["verify", str(choosing(rough, tmp_path, "exact")), "--text", str(text)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: kernel lut:" in printed
    assert "OK: 15 layers within the limits by kernel exact" in printed


def test_info_says_which_kernel_runs(rough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = choosing(rough, tmp_path, "exact")
    assert open_folder(folder).kernel == "exact"
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["kernel"] == "exact"
