"""Rotations absorbed into the weights: the same model in float for every architecture, in all that reads a source's weights."""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check
from test_calibrate import write_text
from test_codes_from import contents

from architecture_helpers import (
    CASES,
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
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import ExportReport, export
from fairy2i_export.codes.native import Workers
from fairy2i_export.commands import tools as tools_cli
from fairy2i_export.commands.export import main
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.compile.identity import identity
from fairy2i_export.compile.prepare import prepare
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import FormatError, OptionError, WeightError
from fairy2i_export.onnx_graph.formats.rounded import round_blocks
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.request.option import build
from fairy2i_export.request.request import Request
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.rotation.choice import choose_rotation, stated_rotation
from fairy2i_export.source.rotation.transform import Rotation, make_rotation
from fairy2i_export.source.rotation.weights import RotatedWeights

TOKENS = 300
MORE_CASES = [
    pytest.param(
        "llama", {"hidden_size": 144, "head_dim": 24, "num_attention_heads": 6}, id="144 = 9 x 16, heads of 24 = 3 x 8"
    ),
    pytest.param(
        "llama",
        {
            "hidden_size": 45,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        id="an odd size",
    ),
    pytest.param("qwen3", {"hidden_size": 64, "num_key_value_heads": 4}, id="a power of two"),
]


def dense(rotation: Rotation) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The matrix, from its definition."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < rotation.power:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    blocks = len(rotation.signs) // rotation.size
    parts = np.kron(np.eye(blocks), np.kron(rotation.odd, hadamard / rotation.power**0.5))
    return np.diag(rotation.signs) @ parts


@pytest.mark.parametrize("size", [1, 2, 64, 45, 48, 576, 3 * 1024])
def test_a_rotation_is_the_orthogonal_matrix_it_says(size: int) -> None:
    rotation = make_rotation(size, "seed", signs=2, repeats=2) if size < 100 else make_rotation(size, "seed")
    matrix = dense(rotation)
    length = len(matrix)
    assert np.allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((5, length))
    assert np.allclose(rotation.apply(x), x @ matrix, atol=1e-12)
    assert np.allclose(rotation.apply_to_columns(x.T), matrix.T @ x.T, atol=1e-12)
    assert np.array_equal(rotation.apply_to_columns(x[0]), rotation.apply(x)[0])  # to the bit, however it is asked for
    if size >= 48:
        assert abs(rotation.apply(np.eye(length)[:3])).max() < 4 * size**-0.5  # an outlier goes to all channels
        assert set(rotation.signs) == {-1.0, 1.0}


def test_a_rotation_has_the_same_bits_everywhere() -> None:
    """Whoever changes them gives the method another name: models state it, and are compared with a source rotated anew."""
    rows = make_rotation(576, "seed").apply(np.eye(576)) + make_rotation(96, "seed", 3, 2).apply(np.eye(576))
    assert hashlib.sha256(rows.astype("<f8").tobytes()).hexdigest()[:16] == "59cfa427da1f9919"


def rotated_copy(source: Path, directory: Path) -> Path:
    """The rotated checkpoint as a folder of its own, for transformers."""
    from safetensors.numpy import save_file

    checkpoint = open_checkpoint(source)
    decoder = describe(checkpoint.config)
    choice = choose_rotation(decoder)
    rotated = RotatedWeights(checkpoint, decoder, choice)
    shutil.copytree(source, directory)
    tensors = {}
    for name in checkpoint.owners:
        module, _, key = name.rpartition(".")
        tensors[name] = rotated.read(module, key)
    if decoder.tied and rotated.unties:
        tensors["lm_head.weight"] = rotated.read("lm_head", tensor="model.embed_tokens.weight")
        edit_json(directory / "config.json", tie_word_embeddings=False)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def torch_model(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize(("kind", "settings"), [*CASES, *MORE_CASES])
def test_the_rotated_model_is_the_same(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", kind, **settings)
    plain, rotated = torch_model(source), torch_model(rotated_copy(source, tmp_path / "rotated"))
    ids = random_ids(2)
    expected, got = (reference_logits(model, ids, np.ones_like(ids)) for model in (plain, rotated))
    assert largest_difference(got, expected, np.ones_like(ids)) < TOLERANCE
    norms_behind = kind.startswith(("gemma", "olmo"))
    turned = not norms_behind
    for name, before in plain.state_dict().items():
        after = rotated.state_dict()[name]
        folded = name == "model.norm.weight" or "layernorm" in name
        if turned and folded:
            assert torch.equal(after, torch.ones_like(after)), name
        projection = name.split(".")[-2]
        is_turned = projection in ("v_proj", "qkv_proj", "o_proj") if norms_behind else "_proj" in projection or folded
        is_turned |= turned and projection in ("embed_tokens", "lm_head")
        if name.endswith("bias"):
            is_turned = projection in ("v_proj", *(("o_proj", "down_proj") if turned else ()))
        assert torch.equal(before, after) != is_turned, name


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text")


def convert(source: Path, out: Path, text: Path, **options: Any) -> ExportReport:
    return export(source, out, calibrate=[text], calibrate_tokens=TOKENS, jobs=1, **options)


@pytest.mark.parametrize(
    ("kind", "settings", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {"lm_head": "float"}),
        ("qwen2", {"tie_word_embeddings": True}, {"lm_head": "fairy2i", "exclude": ["*.o_proj", "*.v_proj"]}),
        ("phi3", {"tie_word_embeddings": False}, {"lm_head": "float", "exclude": ["*.qkv_proj"], "backend": "fairy2i"}),
        ("gemma2", {**MIXED, "tie_word_embeddings": True}, {"lm_head": "fairy2i"}),
        ("olmo2", {"attention_bias": True}, {"lm_head": "float"}),
    ],
)
def test_an_export_is_the_rotated_model(
    kind: str, settings: dict[str, Any], options: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    """Against transformers on the rotated checkpoint; and near the plain one, which a wrong rotation is nowhere near."""
    source = save_tiny(tmp_path / "model", kind, **settings)
    report = convert(source, tmp_path / "out", text, embedding="float32", **options)
    model = take_parts(torch_model(rotated_copy(source, tmp_path / "rotated")), tmp_path / "out")
    ids = random_ids(1)
    mask = np.ones_like(ids)
    got = stepwise_logits(exact_session(tmp_path / "out"), ids, mask, PROMPT)
    assert largest_difference(got, reference_logits(model, ids, mask), mask) < TOLERANCE
    original = reference_logits(torch_model(source), ids, mask)
    assert np.linalg.norm(got - original) < 0.5 * np.linalg.norm(original)
    left_out = [warning for warning in report.warnings if warning.startswith("rotation: the residual stream")]
    assert bool(left_out) == (kind in ("gemma2", "olmo2"))
    assert report.mean_error < 0.2  # of the rotated weights; of the source's own it would be above 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, bfloat16, 72 = 9 x 8 channels, heads of 8."""
    return make_checkpoint(tmp_path_factory.mktemp("rotation") / "model", tie_word_embeddings=True, attention_bias=True)


@pytest.fixture(scope="module")
def folder(source: Path, text: Path) -> Path:
    out = source.parent / "out"
    convert(source, out, text, lm_head="float")
    return out


def metadata_of(folder: Path) -> dict[str, str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def initializers(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(folder / "model.onnx").graph.initializer}


def test_other_forms_of_embedding_and_head_are_rotated_too(source: Path, text: Path, folder: Path, tmp_path: Path) -> None:
    copy = open_checkpoint(rotated_copy(source, tmp_path / "copy"))
    embedding, head = copy.read("model.embed_tokens.weight"), copy.read("lm_head.weight")
    assert not np.allclose(embedding, head)
    first = initializers(folder)
    assert np.array_equal(first["model.embed_tokens.weight"], embedding.astype(np.float16))
    assert np.array_equal(first["lm_head.weight_transposed"], head.T)
    convert(source, tmp_path / "fresh", text, lm_head="int8", embedding="int8")
    export(source, tmp_path / "again", codes_from=folder, lm_head="int8", embedding="int8")
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")
    found = initializers(tmp_path / "again")
    rows, scales = round_blocks(embedding, 8)
    assert np.array_equal(found["model.embed_tokens.int8"], rows.reshape(len(rows), -1)[:, :72])
    assert np.array_equal(found["model.embed_tokens.int8_scales"], scales)
    assert np.array_equal(found["lm_head.int8"], round_blocks(head, 8)[0])
    export(source, tmp_path / "dense", codes_from=folder, backend="dense")
    ids = random_ids(1) % 90
    mask = np.ones_like(ids)
    one, other = (stepwise_logits(exact_session(path), ids, mask, PROMPT) for path in (folder, tmp_path / "dense"))
    assert largest_difference(one, other, mask) < TOLERANCE


def test_the_result_does_not_depend_on_threads(source: Path, tmp_path: Path, folder: Path) -> None:
    """Of the rotation, that is; calibration has its own rule."""
    for jobs in (1, 3):
        export(source, tmp_path / f"{jobs}", codes_from=folder, lm_head="int4", jobs=jobs)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_what_compares_with_the_source_rotates_it(
    source: Path, text: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder), "--text", str(text), "--tokens", "90"]
    tools_cli.main(["verify", *given, "--against", str(source), "--json"])
    verified = json.loads(capsys.readouterr().out)
    # a random model with perplexities in the billions: what 8-bit tables make of it is by chance within the limits or not
    assert all(problem.startswith("kernel lut: ") for problem in verified["problems"])
    assert "rotated as the model's were" in " ".join(verified["notes"])
    pairs = {(entry["kernel"], entry["reference"]): entry for entry in verified["logits"]}
    assert pairs["exact", "torch"]["relative_error"] < 1e-4
    assert (
        tools_cli.main(["ppl", *given, "--against", str(source), "--float", str(source), "--json", "--kernel", "exact"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    for difference in found["against"]["differences"]:
        assert abs(difference["log_ratio"]) < 1e-4
    plain = tmp_path / "plain"
    export(source, plain, trained=True, lm_head="float")  # not rotated: what --float says must not depend on the model
    assert tools_cli.main(["ppl", str(plain), *given[1:], "--float", str(source), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    floats = [[result["perplexity"] for result in report["float"]["results"]] for report in (found, other)]
    assert floats[0] == floats[1]
    page = tmp_path / "report.html"
    assert tools_cli.main(["report", *given, "--against", str(source), "-o", str(page)]) == 0
    written = html.unescape(page.read_text(encoding="utf-8"))
    assert "rotated as the model's were" in written
    assert "signs-orthogonal-hadamard" in written
    assert tools_cli.main(["inspect", str(folder)]) == 0
    assert "rotation" in capsys.readouterr().out


def test_the_report_measures_errors_of_the_rotated_weights(source: Path, folder: Path) -> None:
    from fairy2i_export.check.page.collect import collect
    from fairy2i_runtime import load

    ids = np.arange(3, 40)
    found = collect(load(folder), read_nodes(folder / "model.onnx"), open_checkpoint(source), ids)
    assert max(layer.quantization_error for layer in found.layers) < 0.3


def test_a_step_can_be_left_out(source: Path, text: Path, tmp_path: Path, folder: Path) -> None:
    stated = json.loads(metadata_of(folder)["fairy2i.rotation"])
    assert (stated["residual"], stated["heads"]) == ("9 x 8", "1 x 8")
    calibration = json.loads(metadata_of(folder)["fairy2i.calibration"])
    assert ("without" in calibration, calibration["tuned"]) == (False, True)
    assert "residual stream (9 x 8), values of heads (1 x 8)" in (folder / "README.md").read_text()
    convert(source, tmp_path / "out", text, lm_head="float", calibrate_without=("tuning", "rotation"))
    metadata = metadata_of(tmp_path / "out")
    assert "fairy2i.rotation" not in metadata
    calibration = json.loads(metadata["fairy2i.calibration"])
    assert (calibration["without"], calibration["tuned"]) == (["rotation", "tuning"], False)
    found = initializers(tmp_path / "out")
    assert np.array_equal(found["model.norm.weight"], open_checkpoint(source).read("model.norm.weight").astype(np.float32))
    convert(source, tmp_path / "rotated", text, lm_head="float", calibrate_without=("tuning",))
    assert np.array_equal(initializers(tmp_path / "rotated")["model.norm.weight"], np.ones(72, np.float32))
    tuned = initializers(folder)["model.norm.weight"]
    assert 0 < np.abs(tuned - 1).max() < 0.1
    export(source, tmp_path / "again", codes_from=tmp_path / "out", lm_head="int8")
    assert "fairy2i.rotation" not in metadata_of(tmp_path / "again")


def test_steps_are_told_on_the_command_line(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(source), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--calibrate-without", "rotation"]) == 2
    assert "add --calibrate TEXT" in capsys.readouterr().err
    assert main([*command, "--calibrate", str(text), "--calibrate-without", "all"]) == 2
    assert "calibrate without: expected one of rotation, descent, tuning, got 'all'" in capsys.readouterr().err
    steps = ["--calibrate-without", "descent", "--calibrate-without", "rotation"]
    assert main([*command, "--calibrate", str(text), *steps]) == 0
    both = [prepare(source, None, request(text, steps)) for steps in (("descent", "rotation"), ("rotation", "descent"))]
    assert both[0].options.decisive() == both[1].options.decisive()
    assert both[0].options.decisive() != prepare(source, None, request(text)).options.decisive()


def request(text: Path, without: tuple[str, ...] = ()) -> Request:
    values = {"calibrate": [text], "calibrate_tokens": TOKENS, "calibrate_without": without}
    return build(Request, "checkpoint", values)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2"])
def test_what_cannot_be_rotated_is_said(kind: str, text: Path, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", kind)
    run = dry_run(source, calibrate=[text], calibrate_tokens=TOKENS)
    (warning,) = [text for text in run.warnings if text.startswith("rotation: ")]
    assert "norms behind attention and feed-forward blocks" in warning
    assert ("without a norm in front" in warning) == (kind == "olmo2")
    assert "the values of heads are rotated" in warning
    without = dry_run(source, calibrate=[text], calibrate_tokens=TOKENS, calibrate_without=["rotation"])
    assert not [text for text in without.warnings if text.startswith("rotation: ")]
    assert json.loads(run.options.rotation or "")["residual"] is None


def test_a_rotation_that_cannot_be_made_again_is_refused(source: Path, folder: Path, tmp_path: Path) -> None:
    decoder = describe(open_checkpoint(source).config)
    choice = choose_rotation(decoder)
    assert stated_rotation(choice.stated(decoder), decoder) == choice
    for wrong in (
        "{",
        "null",
        choice.stated(decoder).replace("-1", "-2"),
        choice.stated(decoder).replace("9 x 8", "18 x 4"),
    ):
        with pytest.raises(FormatError, match=r"metadata fairy2i.rotation: expected .* found "):
            stated_rotation(wrong, decoder)
    shutil.copytree(folder, tmp_path / "edited")
    model = onnx.load(tmp_path / "edited" / "model.onnx", load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "fairy2i.rotation":
            entry.value = "{}"
    onnx.save(model, tmp_path / "edited" / "model.onnx")
    with pytest.raises(OptionError, match=r"codes from .*edited: metadata fairy2i.rotation: expected"):
        export(source, tmp_path / "again", codes_from=tmp_path / "edited")
    assert tools_cli.main(["verify", str(tmp_path / "edited"), "--against", str(source)]) == 2


class Written:
    """In place of a TensorWriter."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray[Any, Any]] = []

    def write(self, name: str, piece: np.ndarray[Any, Any]) -> None:
        self.pieces.append(piece)


def test_small_tensors_can_be_replaced(source: Path, text: Path) -> None:
    """What tuning finds stands in the place of what rotation makes of the checkpoint's."""
    prepared = prepare(source, None, request(text))
    tuned = np.linspace(0.9, 1.1, 72, dtype=np.float32)
    bias = np.linspace(-1, 1, 24, dtype=np.float32)
    names = {"model.norm.weight": tuned, "model.layers.1.self_attn.v_proj.bias": bias}
    for name, value in names.items():
        before, after = Written(), Written()
        array = prepared.checkpoint.read(name)
        prepared.weights.replaced = {}
        prepared.tasks[name].make(array, before, Workers())  # type: ignore[arg-type]
        prepared.weights.replaced = names
        prepared.tasks[name].make(array, after, Workers())  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate(after.pieces), value)
        assert not np.array_equal(np.concatenate(before.pieces), value)


def test_a_norm_that_is_not_finite_is_named(text: Path, tmp_path: Path) -> None:
    bad = {"model.layers.1.input_layernorm.weight": np.full(72, np.nan, np.float32)}
    source = make_checkpoint(tmp_path / "model", replace=bad)
    with pytest.raises(WeightError, match=r"model\.layers\.1\.input_layernorm\.weight: a value is not finite"):
        convert(source, tmp_path / "out", text)


def change_a_norm(source: Path) -> None:
    """The checkpoint with another norm, of the same size and time of change."""
    file = source / "model.safetensors"
    status = file.stat()
    tensor = open_checkpoint(source).info("model.layers.0.input_layernorm.weight")
    content = bytearray(file.read_bytes())
    content[tensor.begin : tensor.begin + 2] = content[tensor.begin + 2 : tensor.begin + 4]
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_export_is_not_continued_with_other_norms(source: Path, text: Path, tmp_path: Path) -> None:
    """They go into other tensors than their own, which may lie before them in the file."""
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    found = []
    for without in ((), ("rotation",)):
        prepared = prepare(copy, None, request(text, without))
        found.append(identity(prepared.checkpoint, prepared.options, prepared.places))
    change_a_norm(copy)
    for index, without in enumerate(((), ("rotation",))):
        prepared = prepare(copy, None, request(text, without))
        after = identity(prepared.checkpoint, prepared.options, prepared.places)
        assert (after["source"] == found[index]["source"]) == bool(without)
