"""Every backend against the same torch twin: logits, greedy tokens, and what the folders need to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import fairy2i_runtime
from export_helpers import GrowingCache, dequantized_torch_model, make_checkpoint, relative_difference, torch_logits
from fairy2i_export import ExportReport, export, quantize
from fairy2i_export.commands.export import main
from fairy2i_export.commands.tools import main as tools
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import OptionError, WeightError
from fairy2i_export.onnx_graph.formats import FORMATS, matmulnbits
from fairy2i_runtime.errors import OptionError as RuntimeOptionError

PROMPT, STEPS = 12, 20
EXACT, HALF, INT8 = 2e-5, 2e-3, 0.05  # of the largest logit
WAYS = [
    pytest.param({"backend": "fairy2i"}, EXACT, id="fairy2i"),
    pytest.param({"backend": "matmulnbits", "accuracy_level": 0}, EXACT, id="matmulnbits, exact"),
    pytest.param({"backend": "matmulnbits"}, INT8, id="matmulnbits, int8"),
    pytest.param({"backend": "dense"}, EXACT, id="dense"),
    pytest.param({"backend": "dense", "dense_type": "float16"}, HALF, id="dense, float16"),
]
MODELS = [
    pytest.param(({}, {}), id="W2"),
    pytest.param(({"attention_bias": True, "mlp_bias": True}, {"row_multiplier": "rms"}), id="W2, biases, row multipliers"),
    pytest.param(({"tie_word_embeddings": True}, {"stages": 1}), id="W1, tied"),
    pytest.param(({}, {"stages": 3}), id="W3"),
    pytest.param(({}, {"quantizer": "joint", "row_multiplier": "rms"}), id="W2, joint, row multipliers"),
]
FOREIGN = [way for way in WAYS if way.id != "fairy2i"]


def small(tmp_path: Path, way: dict[str, Any], **settings: Any) -> ExportReport:
    source = make_checkpoint(tmp_path / "source", dtype=np.float32, num_hidden_layers=1, **settings)
    return export(source, tmp_path / "out", context_length=64, **way)


def session_of(report: ExportReport) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if report.options.backend == "fairy2i":
        options.add_session_config_entry("fairy2i.kernel", "exact")
        fairy2i_runtime.register(options)
    return ort.InferenceSession(str(report.path / "model.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """(checkpoint, quantizer options, torch model with dequantized weights)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config, quantizer = request.param
    folder = tmp_path_factory.mktemp("backends")
    source = make_checkpoint(folder / "source", dtype=np.float32, **config)
    linears = [linear.name for linear in export(source, folder / "plain", **quantizer).rewritten]
    return source, quantizer, dequantized_torch_model(source, linears, **{"stages": 2, **quantizer})


@pytest.mark.parametrize(("way", "tolerance"), WAYS)
def test_same_logits_and_tokens_as_torch(
    model: tuple[Path, dict[str, Any], Any], way: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    source, quantizer, twin = model
    session = session_of(export(source, tmp_path / "out", **quantizer, **way))
    if tolerance == INT8 and quantizer.get("quantizer") == "joint":
        tolerance *= 2  # one int8 block of this small model holds activations times all scales, which differ more
    ids = np.random.default_rng(0).integers(3, 200, (3, PROMPT))
    assert relative_difference(GrowingCache(session, 3)(ids), torch_logits(twin, ids)) < tolerance
    if tolerance == EXACT:
        assert greedy(session, ids[:1]) == greedy_torch(twin, ids[:1])


def greedy(session: ort.InferenceSession, ids: npt.NDArray[np.int64]) -> list[int]:
    run, tokens = GrowingCache(session), []
    for _ in range(STEPS):
        tokens.append(int(run(ids)[0, -1].argmax()))
        ids = np.array([[tokens[-1]]])
    return tokens


def greedy_torch(twin: Any, ids: npt.NDArray[np.int64]) -> list[int]:
    for _ in range(STEPS):
        following = torch_logits(twin, ids)[0, -1].argmax()
        ids = np.append(ids, [[following]], axis=1)
    return [int(token) for token in ids[0, -STEPS:]]


@pytest.mark.parametrize(("way", "tolerance"), FOREIGN)
def test_no_library_is_needed(
    way: dict[str, Any],
    tolerance: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = small(tmp_path, way).path
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {node.domain for node in stored.graph.node} <= {"", "com.microsoft"}
    assert not stored.functions
    assert {opset.domain for opset in stored.opset_import} == {"", "com.microsoft"}
    config = json.loads((folder / "genai_config.json").read_text())
    assert "custom_ops_library" not in config["model"]["decoder"]["session_options"]
    assert not [path for path in folder.iterdir() if "fairy2i_ops" in path.name]
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "none.so"))  # looking for it would be an error
    assert tools(["generate", str(folder), "w5 w6", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("way", "tolerance"), FOREIGN)
def test_genai_generates_the_same_tokens(way: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    report = small(tmp_path, way, eos_token_id=209)
    ids = np.arange(5, 5 + PROMPT)[None]
    parameters = genai.GeneratorParams(genai_model := genai.Model(str(report.path)))
    parameters.set_search_options(do_sample=False, max_length=PROMPT + 8)
    generator = genai.Generator(genai_model, parameters)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)][PROMPT:] == greedy(session_of(report), ids)[:8]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 2), (6, 34), (10, 128)])
def test_the_ternary_matrix_is_the_layer(stages: int, shape: tuple[int, int]) -> None:
    """T's values read back from the bytes, times the factors, are the dense matrix exactly."""
    q = quantize(np.random.default_rng(1).standard_normal(shape), stages, "fp32")
    data = matmulnbits.ternary(q.codes)
    values = np.stack([data >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(q.n, -1).astype(np.float64) - 2
    assert (values[:, 4 * stages * q.m :] == 0).all()
    pieces = values[:, : 4 * stages * q.m].reshape(q.n, 4 * stages, q.m)
    factors = matmulnbits.factors(q.scales).astype(np.float64).reshape(2, 4 * stages)
    dense = np.empty((2 * q.n, 2 * q.m))
    for row, first in ((slice(0, q.n), 0), (slice(q.n, None), 1)):  # even pieces belong to one half of x, odd to the other
        for parity in (0, 1):
            columns = slice(0, q.m) if parity == first else slice(q.m, None)
            chosen = slice(parity, None, 2)
            dense[row, columns] = np.einsum("npm,p->nm", pieces[:, chosen], factors[first, chosen])
    np.testing.assert_allclose(dense, q.dequantize("none"), rtol=0, atol=1e-6 * np.abs(dense).max())


def test_sizes(tmp_path: Path) -> None:
    """Weights take 2 bits per stage as codes, twice that as ternary matrices; dense ones as their type."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
    source = make_checkpoint(tmp_path / "source", num_hidden_layers=1, vocab_size=256, **sizes)
    bits = {}
    for way in WAYS:
        report = export(source, tmp_path / str(way.id), **way.values[0])
        bits[way.id] = report.bits_per_weight
        stored = onnx.load(report.path / "model.onnx")
        kinds = (".packed", ".ternary", ".weight_transposed", ".scales", ".factors")
        found = sum(len(tensor.raw_data) for tensor in stored.graph.initializer if tensor.name.endswith(kinds))
        assert found == report.weight_bytes
        metadata = {entry.key: entry.value for entry in stored.metadata_props}
        assert metadata["fairy2i.backend"] == report.options.backend
        assert FORMATS[report.options.backend].operator in (report.path / "README.md").read_text(encoding="utf-8")
    assert bits["fairy2i"] == pytest.approx(2, abs=0.01)
    assert bits["matmulnbits, exact"] == bits["matmulnbits, int8"] == pytest.approx(4, abs=0.02)
    assert (bits["dense"], bits["dense, float16"]) == (32, 16)


def test_float16_overflow_is_an_error(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    replace = {name: np.random.default_rng(0).standard_normal((150, 72)).astype(np.float32) * 1e6}
    with pytest.raises(WeightError, match=r"up_proj.*do not fit float16; use --dense-type float32"):
        small(tmp_path, {"backend": "dense", "dense_type": "float16"}, replace=replace)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"backend": "gguf"}, "backend: expected one of fairy2i, matmulnbits, dense, got 'gguf'"),
        ({"backend": "matmulnbits", "accuracy_level": 2}, "accuracy level: expected one of 0, 4, got 2"),
        ({"backend": "dense", "dense_type": "bfloat16"}, "dense type: expected one of float32, float16"),
        ({"dense_type": "float16"}, "dense type: is for the backend dense, and this is fairy2i"),
        ({"backend": "dense", "accuracy_level": 0}, "accuracy level: is for the backend matmulnbits, and this is dense"),
    ],
)
def test_impossible_options(tmp_path: Path, way: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        small(tmp_path, way)
    assert not (tmp_path / "out").exists()


def test_tools_say_what_they_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_checkpoint(tmp_path / "source", num_hidden_layers=1)
    folder = str(tmp_path / "out")
    arguments = [str(source), "-o", folder, "--backend", "matmulnbits", "--accuracy-level", "0", "--trained", "-q"]
    assert main(arguments) == 0
    assert tools(["verify", folder]) == 2
    assert "--backend" in capsys.readouterr().err
    assert tools(["inspect", folder]) == 2
    assert "--backend" in capsys.readouterr().err
    with pytest.raises(RuntimeOptionError, match="exported for hosts without it"):
        fairy2i_runtime.load(folder, kernel="lut")


@pytest.mark.parametrize("option", [["--backend", "dense"], ["--dense-type", "float16"], ["--accuracy-level", "0"]])
def test_onnx_sources_refuse_backends(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "model.onnx"), *option]) == 2
    assert f"{option[0]} is for checkpoints only" in capsys.readouterr().err


def test_memory_of_copies_is_estimated(tmp_path: Path) -> None:
    """ONNX Runtime copies all weights but those of our operator; a float16 one becomes float32."""
    source = make_checkpoint(tmp_path / "source")
    found = {way.id: dry_run(source, None, **way.values[0]) for way in WAYS}
    weights = sum(linear.parameters for linear in export(source, tmp_path / "out").rewritten)
    assert found["fairy2i"].device.copied == 0
    assert found["dense"].device.copied == found["dense, float16"].device.copied == 4 * weights
    assert found["matmulnbits, int8"].device.copied >= weights / 2
    for run in found.values():
        assert run.device.total == sum(vars(run.device).values()) - run.device.context


def test_bench_does_not_claim_a_kernel_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path, {"backend": "dense"}).path
    assert tools(["bench", str(folder), "--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1"]) == 0
    assert "operators of onnxruntime" in capsys.readouterr().out
