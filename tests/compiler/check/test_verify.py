"""fairy2i verify: passes on what the exporter writes, and catches and names what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.check.source_weights import check_origin
from fairy2i_export.commands.tools import main
from fairy2i_export.output.contract.layers import check_layers, dense_product, output_error
from fairy2i_export.output.contract.logits import compare
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.text.sample_text import mostly_unknown, random_ids

MODEL = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "stories"
    export(MODEL, out)
    return out


def damaged(folder: Path, tmp_path: Path, change: object) -> Path:
    """A copy of the folder whose .onnx and data went through ``change(model, data)``."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    data = bytearray((copy / "model.onnx.data").read_bytes())
    change(model, data)  # type: ignore[operator]
    onnx.save(model, copy / "model.onnx")
    (copy / "model.onnx.data").write_bytes(data)
    return copy


def location(model: onnx.ModelProto, name: str) -> tuple[int, int]:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["offset"]), int(entries["length"])


def test_passes_and_compares_with_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--against", str(MODEL)]) == 0
    printed = capsys.readouterr().out
    assert "OK: 36 layers within the limits" in printed
    assert "codes and scales of all 36 layers equal" in printed
    pytest.importorskip("torch")
    assert "exact : torch" in printed


def test_every_layer_meets_the_contract_on_real_activations(folder: Path) -> None:
    import fairy2i_runtime

    text = (ROOT / "examples" / "data" / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    ids = np.array([fairy2i_runtime.load(folder).tokenizer.encode(text)[:400]], np.int64)
    model_file = folder / "model.onnx"
    results = list(check_layers(model_file, read_nodes(model_file), ids))
    assert len(results) == 36
    for result in results:
        assert result.errors["exact", "real"] < 1e-5, result.name
        assert result.errors["lut", "real"] < 0.015, result.name


def test_perplexity_of_default_mode(folder: Path) -> None:
    """Within 0.5 % of exact mode, over every story of the sample (1,804 tokens)."""
    import fairy2i_runtime

    text = (ROOT / "examples" / "data" / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    exact = fairy2i_runtime.load(folder, kernel="exact")
    lut = fairy2i_runtime.load(folder, kernel="lut")
    total, tokens = 0.0, 0
    for story in filter(None, (part.strip() for part in text.split("<|endoftext|>"))):
        ids = np.array(exact.tokenizer.encode(story)[:512], np.int64)
        result = compare(lut.logits(ids.tolist()), exact.logits(ids.tolist()), ids)
        total += result.log_ratio * (len(ids) - 1)
        tokens += len(ids) - 1
    assert tokens > 1500
    assert abs(total / tokens) < 0.005


def test_a_flipped_bit_in_the_weights_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: onnx.ModelProto, data: bytearray) -> None:
        offset, _ = location(model, "model.layers.2.mlp.up_proj.packed")
        data[offset] ^= 1

    assert main(["verify", str(damaged(folder, tmp_path, change)), "--against", str(MODEL)]) == 1
    assert "model.layers.2.mlp.up_proj: " in capsys.readouterr().out.replace("\n", " ")


def test_changed_scales_and_a_wrong_wire_are_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: onnx.ModelProto, data: bytearray) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.self_attn.o_proj.scales")
        tensor.float_data[:] = []
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()

    copy = damaged(folder, tmp_path, change)
    assert main(["verify", str(copy), "--against", str(MODEL)]) == 1
    assert "the scales differ" in capsys.readouterr().out.replace("\n", " ")
    assert main(["verify", str(copy)]) == 0  # consistent in itself: only the source can tell


def test_json_holds_what_the_tables_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--all"]) == 0
    tables = capsys.readouterr().out
    assert main(["verify", str(folder), "--against", str(MODEL), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["problems"] == []
    assert found["default_kernel"] == "lut"
    assert len(found["layers"]) == 36
    for layer in found["layers"]:
        assert layer["name"] in tables
        for kernel, errors in layer["errors"].items():
            for kind, error in errors.items():
                assert error <= found["kernels"][kernel]["limits"][kind]
                assert f"{error:.1e}" in tables
    worst = found["kernels"]["lut"]
    assert worst["holds"]
    assert worst["layers_failing"] == 0
    assert worst["worst_excess"] == max(
        layer["errors"]["lut"][kind] / worst["limits"][kind] for layer in found["layers"] for kind in worst["limits"]
    )
    pairs = {(item["kernel"], item["reference"]): item for item in found["logits"]}
    assert f"{pairs['lut', 'exact']['perplexity']:.3f}" in tables
    assert found["against"] == {"source": MODEL.name, "differing": []}
    pytest.importorskip("torch")
    assert pairs["exact", "torch"]["relative_error"] < 1e-5


def test_json_of_a_model_that_fails(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: onnx.ModelProto, data: bytearray) -> None:
        offset, _ = location(model, "model.layers.2.mlp.up_proj.packed")
        data[offset] ^= 1

    copy = damaged(folder, tmp_path, change)
    assert main(["verify", str(copy), "--against", str(MODEL), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert [item["name"] for item in found["against"]["differing"]] == ["model.layers.2.mlp.up_proj"]
    assert "model.layers.2.mlp.up_proj" in found["problems"][0]


@pytest.mark.parametrize("backend", ["dense", "matmulnbits"])
@pytest.mark.parametrize("command", ["verify", "report"])
def test_other_backends_are_named_as_such(
    backend: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no option is blamed that nobody gave."""
    export(MODEL, tmp_path / "out", backend=backend)
    more = ["--against", str(MODEL), "-o", str(tmp_path / "r.html")] if command == "report" else []
    assert main([command, str(tmp_path / "out"), *more]) == 2
    message = capsys.readouterr().err
    assert "another backend" in message
    assert "isa" not in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "does not exist"),
        (["{folder}", "--tokens", "1"], "--tokens: expected at least 2"),
        (["{folder}", "--text", "/nowhere.txt"], "--text"),
        (["{folder}", "--against", "/nowhere"], "no such file or directory"),
        (["{folder}", "--isa", "doesnotexist"], "doesnotexist"),
        (["{folder}", "--frobnicate"], "No such option"),
    ],
)
def test_wrong_use(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *(a.format(folder=folder) for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_model_without_our_nodes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: onnx.ModelProto, data: bytearray) -> None:
        for node in model.graph.node:
            if node.domain == "ai.fairy2i":
                node.domain = "someone.else"
        for function in model.functions:
            function.domain = "someone.else"
            for node in function.node:
                if node.domain == "ai.fairy2i":
                    node.domain = "someone.else"
        model.opset_import.add(domain="someone.else", version=1)

    assert main(["verify", str(damaged(folder, tmp_path, change))]) == 2
    assert "expected Fairy2iMatMul nodes" in capsys.readouterr().err


def test_dense_product_is_the_float64_product() -> None:
    import oracle
    from fairy2i_export import quantize

    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((600, 70)), 3, row_multiplier="rms")
    x = rng.standard_normal((5, 70)).astype(np.float32)
    bias = rng.standard_normal(600).astype(np.float32)
    assert q.row_multiplier is not None
    expected = x.astype(np.float64) @ oracle.dense(q.codes, q.scales).T * q.row_multiplier + bias
    assert output_error(dense_product(q, x, bias), expected) < 1e-6
    assert output_error(expected * 1.5, expected) == pytest.approx(0.5)
    assert output_error(np.ones(2), np.zeros(2)) == np.inf
    assert np.isnan(output_error(np.array([np.nan, 1]), np.ones(2)))


def test_logits_comparison_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], np.float32)) + 3  # a shift means nothing
    result = compare(found, reference, np.array([0, 1, 2]))
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.mean_kl == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 3, rel=1e-5)
    assert result.reference_perplexity == pytest.approx((0.25 * 0.6) ** -0.5, rel=1e-5)
    assert result.perplexity == pytest.approx((0.5 * 0.6) ** -0.5, rel=1e-5)
    assert result.log_ratio == pytest.approx(-np.log(2) / 2, rel=1e-5)


def test_a_tokenizer_that_does_not_know_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a text of unknown tokens alone nothing is learned: random tokens, the same ones every time, take its place."""
    folder = export(make_checkpoint(tmp_path / "model"), tmp_path / "out").path
    outputs = []
    for _ in range(2):
        assert main(["verify", str(folder), "--tokens", "40"]) == 0
        outputs.append(capsys.readouterr().out)
    assert "random tokens are used instead" in outputs[0]
    assert "Logits over 40 tokens" in outputs[0]
    assert outputs[0] == outputs[1]
    known, unknown = tmp_path / "known.txt", tmp_path / "unknown.txt"
    known.write_text(" ".join(f"w{i}" for i in range(3, 60)))
    unknown.write_text("one two w5 three four")
    assert main(["verify", str(folder), "--text", str(known)]) == 0
    assert "tokenizer" not in capsys.readouterr().out
    main(["verify", str(folder), "--text", str(unknown)])
    assert "the tokenizer knows few of its words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (models.WordLevel({"[X]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[X]"), 0),
        (models.WordPiece({"a": 0, "[U]": 1, "b": 2, "c": 3}, unk_token="[U]"), 1),
        (models.Unigram([("a", -1.0), ("b", -1.0), ("?", -9.0), ("c", -2.0)], unk_id=2), 2),
        (models.BPE({"a": 0, "b": 1, "c": 2, "<unk>": 3}, [], unk_token="<unk>"), 3),
    ],
)
def test_unknown_tokens_of_every_kind_of_tokenizer(tmp_path: Path, model: Any, unknown: int) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start = tokenizer.add_special_tokens(["<s>"]) and tokenizer.token_to_id("<s>")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    known, strange = tokenizer.encode("a b c a b c").ids, tokenizer.encode("once upon time").ids
    assert unknown in strange
    assert not mostly_unknown(path, known)
    assert mostly_unknown(path, strange)
    assert mostly_unknown(path, [start, *strange])
    found = random_ids(path, [start, *strange], 200)
    assert found[0] == start
    assert set(found[1:]) == set(range(4)) - {unknown}
    assert unknown not in random_ids(path, strange, 50)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another vocabulary": (
        {"vocab_size": 212},
        "tensor model.embed_tokens.weight: expected shape [210, 72] as in the model, found [212, 72]",
    ),
    "wider": (
        {"hidden_size": 144},
        "tensor model.layers.0.self_attn.q_proj.weight: expected shape [72, 72] as in the model, found [144, 144]",
    ),
    "wider inside": (
        {"intermediate_size": 152},
        "tensor model.layers.0.mlp.gate_proj.weight: expected shape [150, 72] as in the model, found [152, 72]",
    ),
    "deeper": ({"num_hidden_layers": 3}, "num_hidden_layers: expected 2 as in the model, found 3"),
    "another architecture": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
        "architecture: expected LlamaForCausalLM as in the model, found MistralForCausalLM",
    ),
}
BACKENDS: dict[str, dict[str, Any]] = {
    "fairy2i": {},
    "matmulnbits": {"backend": "matmulnbits", "lm_head": "int4", "embedding": "int8"},
    "dense": {"backend": "dense"},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model by backend, and its source."""
    root = tmp_path_factory.mktemp("small")
    found = {"source": make_checkpoint(root / "source")}
    for name, options in BACKENDS.items():
        export(found["source"], root / name, trained=True, **options)
        found[name] = root / name
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", OTHERS)
def test_a_source_of_another_model_is_refused_before_the_work(
    small: dict[str, Path], tmp_path: Path, kind: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    changes, message = OTHERS[kind]
    other, text = make_checkpoint(tmp_path / "other", **changes), tmp_path / "text.txt"
    text.write_text("w3 w4 w5 w6 w7 w8")
    folder = str(small[backend])
    commands = [["ppl", folder, "--text", str(text), option, str(other)] for option in ("--float", "--against")]
    if backend == "fairy2i":
        commands += [
            ["verify", folder, "--against", str(other)],
            ["report", folder, "--against", str(other), "-o", str(tmp_path / "page.html")],
        ]
    for command in commands:
        assert main(command) == 2, command
        captured = capsys.readouterr()
        assert "the model was exported from" in captured.err
        assert "as in the model, found" in captured.err
        assert captured.out == ""
        if backend == "fairy2i":
            assert message in captured.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_own_source_is_not_refused(small: dict[str, Path], backend: str, tmp_path: Path) -> None:
    """Also where the head is tied, which the checkpoint has no tensor for."""
    checkpoint = open_checkpoint(small["source"])
    check_origin(small[backend] / "model.onnx", checkpoint)
    tied = make_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    export(tied, tmp_path / "out", trained=True, **BACKENDS[backend])
    check_origin(tmp_path / "out" / "model.onnx", open_checkpoint(tied))
