"""The benchmarks run and write what they promise; instruction counts have not grown. Nothing here asserts a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from conftest import ROOT
from fairy2i_runtime import core, library_path

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(1, str(ROOT / "benchmarks" / "arm"))

import nodes

import bench_linear
import report
from counts import instructions, x86_rates
from linear import engines, measure, models, shapes, sweep

FIELDS = {"engine", "kernel", "isa", "M", "threads", "shape", "ms", "spread", "gweights_s", "floor_pct", "vs_ort_q2"}
TOLERANCE = 1.03
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def check_records(records: list[dict[str, Any]]) -> None:
    by_key = {(r["engine"], r["kernel"], r["isa"], r["M"], r["threads"], r["shape"]): r for r in records}
    assert len(by_key) == len(records)
    for r in records:
        assert set(r) >= FIELDS
        assert r["ms"] > 0
        assert r["spread"] >= 0
        floor = by_key["floor", "sweep", "", r["M"], r["threads"], r["shape"]]
        q2 = by_key["ort-q2", "MatMulNBits", "", r["M"], r["threads"], r["shape"]]
        assert r["floor_pct"] == pytest.approx(100 * floor["ms"] / r["ms"])
        assert r["vs_ort_q2"] == pytest.approx(q2["ms"] / r["ms"])


@needs_compiler
def test_quick_run_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    layers = {shapes.Shape(64, 128): 3, shapes.Shape(128, 64): 2}
    monkeypatch.setitem(shapes.MODELS, "7B", layers)
    file = tmp_path / "results.json"
    command = ["--quick", "--megabytes", "0.05", "--flush-megabytes", "1", "--repetitions", "3", "--json", str(file)]
    assert bench_linear.main(command) == 0
    records = json.loads(file.read_text())
    check_records(records)
    assert {r["shape"] for r in records} == {"64x128", "128x64", "7B"}
    assert {r["M"] for r in records} == {1, 128}
    best = next(k.isa for k in core.kernels() if k.family == "lut" and k.is_default)
    ms = {r["shape"]: r["ms"] for r in records if (r["kernel"], r["isa"], r["M"]) == ("lut", best, 1)}
    assert ms["7B"] == pytest.approx(3 * ms["64x128"] + 2 * ms["128x64"])
    total = next(r for r in records if (r["kernel"], r["M"], r["shape"]) == ("lut", 128, "7B"))
    assert total["gweights_s"] == pytest.approx(5 * 64 * 128 * 128 / (total["ms"] * 1e-3) / 1e9)
    output = capfd.readouterr().out
    assert "7B: all linear layers" in output
    markdown = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "report.py"), str(file)], capture_output=True, text=True, check=True
    ).stdout
    assert f"| lut {best} | 1 |" in markdown
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN.format('')}\nold\n{report.END.format('')}\nafter\n")
    only = [sys.executable, report.__file__, str(file), "--shape", "7B", "--into", str(page)]
    subprocess.run(only, check=True)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "7B: all linear layers" in text
    assert "64x128" not in text
    assert "old" not in text


@needs_compiler
def test_all_engines_and_thread_counts(tmp_path: Path) -> None:
    """Every engine's output is checked by the benchmark itself; forced kernels are recorded as the library names them."""
    file = tmp_path / "results.json"
    options = ["--shape", "64x256", "-M", "1", "-M", "17", "--threads", "1", "--threads", "2", "--json", str(file)]
    small = ["--megabytes", "0.02", "--flush-megabytes", "0.5", "--repetitions", "1", "--folder", str(tmp_path)]
    names = [*bench_linear.default_engines(), "lut:scalar"]
    assert bench_linear.main([*options, *small, *(word for name in names for word in ("--engine", name))]) == 0
    records = json.loads(file.read_text())
    check_records(records)
    assert {(r["engine"], r["kernel"]) for r in records if r["engine"] == "fairy2i"} == {
        ("fairy2i", family) for family in ("lut", "dot", "exact")
    }
    assert ("lut", "scalar") in {(r["kernel"], r["isa"]) for r in records}
    assert {r["engine"] for r in records} == {"fairy2i", *engines.BASELINES, *engines.FLOORS}
    assert {(r["M"], r["threads"]) for r in records} == {(1, 1), (1, 2), (17, 1), (17, 2)}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "weights are deleted"


WRONG = [
    ["--engine", "fastest"],
    ["--engine", "lut:mmx"],
    ["--shape", "3x5"],
    ["-M", "0"],
    ["--folder", "/dev/null"],
    ["--json", "/dev/null/results.json"],
]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_options_get_one_message(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert bench_linear.main(arguments) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


@needs_compiler
@pytest.mark.parametrize("streams", sweep.STREAMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_sweep_reads_every_byte(threads: int, streams: int) -> None:
    """One flipped bit anywhere changes the sum, at sizes that do and do not divide evenly."""
    rng = np.random.default_rng(0)
    sweeper = sweep.Sweeper(threads)
    for size in (0, 8, 64, 8 * 97, 64 * 48, 64 * 48 + 8, 40_008):
        data = rng.integers(0, 256, size, dtype=np.uint8)
        assert sweeper.run(data, streams) == sweep.checksum(data)
        assert sweeper.run(data, streams, adds=True) == sweep.checksum(data)
        for position in rng.integers(0, size, 20) if size else []:
            before = sweeper.run(data, streams)
            data[position] ^= 1
            assert sweeper.run(data, streams) != before
    sweeper.close()


def test_report_refuses_other_files(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"a": 1}')
    done = subprocess.run([sys.executable, report.__file__, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected records of bench_linear.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_of_ratios() -> None:
    """Only what was measured with both kernels; a shape and number of threads is a row."""
    times = {("lut", 1): 6.0, ("lut", 8): 9.0, ("dot", 1): 4.0, ("dot", 2): 1.0}
    records = [
        {"engine": "fairy2i", "kernel": kernel, "isa": "avx2", "shape": "64x128", "threads": 2, "M": rows, "ms": ms}
        for (kernel, rows), ms in times.items()
    ]
    assert report.ratios(records, "lut avx2/dot avx2").splitlines()[2:] == ["| 64x128 | 2 | 1.50 |"]
    for names in ("lut avx2", "lut avx2/dot avx512"):
        with pytest.raises(ValueError, match="expected"):
            report.ratios(records, names)


def test_copies_outgrow_the_caches() -> None:
    """A pass at small M goes through at least the bytes that were asked for, in every engine, unless layers are tiny."""
    chosen = [engines.parse(name) for name in ("lut", *engines.BASELINES, *engines.FLOORS)]
    plan = measure.Plan(chosen, [], [1], [1], 320 << 20, 0, 7, 1.0, 1.0, Path())
    for shape in shapes.MODELS["7B"]:
        for engine in chosen:
            layer = shape.weights // 4 if engine.engine in engines.FLOORS else engine.kind.layer_bytes(shape)
            assert measure.copies_of(engine, shape, 1, plan) * layer >= 320 << 20


def test_recorded_instruction_counts_are_complete() -> None:
    records = instructions.recorded()["records"]
    kernels = {(r["kernel"], r["isa"]) for r in records}
    assert kernels >= {(family, isa) for family in ("lut", "dot", "exact") for isa in ("scalar", "avx2")}
    assert {r["M"] for r in records} == set(instructions.ROWS)
    assert all(r["instructions_per_weight"] > 0 for r in records)


@needs_compiler
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_look_up_kernel_executes_no_more_instructions_than_recorded() -> None:
    recorded = instructions.recorded()
    compiler = instructions.compiler_of(library_path())
    if compiler != recorded["compiler"]:
        pytest.skip(f"counts were recorded with {recorded['compiler']}, the library was compiled with {compiler}")
    isa = "avx2" if any((k.isa, k.available) == ("avx2", True) for k in core.kernels()) else "scalar"
    expected = next(r for r in recorded["records"] if (r["kernel"], r["isa"], r["M"]) == ("lut", isa, 1))
    found = instructions.per_weight("lut", isa, 1)
    assert found is not None
    for key in ("instructions_per_weight", "instructions_per_activation"):
        assert found[key] <= TOLERANCE * expected[key], f"{isa}: {key}; if intended, record with instructions.py --write"


@needs_compiler
def test_rates_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shuffle of 64 bytes has fewer ports than an addition; where there is no AVX-512, that is what is said."""
    if any(kernel.isa == "avx512" and kernel.available for kernel in core.kernels()):
        found = x86_rates.rates(turns=3)
        assert found[x86_rates.CHAIN] == 1.0
        # a neighbour on the same core takes throughput, and none from a chain: how low rates are says nothing
        assert set(found) == set(x86_rates.LOOPS)
        assert 0 < found["shuffle of 64 bytes"] < 1.2 * found["addition of 64 bytes"] < 6
    monkeypatch.setattr(x86_rates, "kernels", list)
    with pytest.raises(sweep.BenchmarkError, match="expected an x86-64 processor with AVX-512, found"):
        x86_rates.rates()


def test_synthetic_checkpoint_is_one_that_exports(tmp_path: Path) -> None:
    """What benchmarks/exporter/export_7b.py measures: several shards, every tensor of the architecture, random latents."""
    from exporter import synthetic_checkpoint as synthetic
    from fairy2i_export import export
    from fairy2i_export.source.checkpoint import open_checkpoint

    config = synthetic.llama_config(layers=2, hidden=64, inner=96, heads=4, vocab=100)
    synthetic.SHARD_BYTES, before = 40_000, synthetic.SHARD_BYTES
    try:
        synthetic.write_checkpoint(tmp_path / "source", config)
    finally:
        synthetic.SHARD_BYTES = before
    checkpoint = open_checkpoint(tmp_path / "source")
    assert len(checkpoint.files) > 2
    weight = checkpoint.read("model.layers.1.mlp.up_proj.weight").astype(np.float32)
    assert weight.std() == pytest.approx(synthetic.STD, rel=0.05)
    assert np.unique(weight).size > 1000
    report = export(tmp_path / "source", tmp_path / "out", trained=True)
    assert {
        linear.weight: (linear.out_features, linear.in_features) for linear in report.linears
    } == synthetic.linear_shapes(config)
    assert report.mean_error == pytest.approx(0.362, abs=0.02)


def test_plain_torch_quantizer_is_the_published_one() -> None:
    """What exporter/quantize.py compares with gives the quantizer's matrices, but for ties, which its angles cannot decide."""
    torch = pytest.importorskip("torch")
    import ml_dtypes

    from exporter import quantize as benchmark
    from fairy2i_export import quantize

    weight = (np.random.default_rng(0).standard_normal((256, 192)) * 0.02).astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(weight.astype(np.float32)).to(torch.bfloat16)
    for stages in (1, 2):  # 0.1 % of the entries are ties, each then wrong by a whole scale; they also move the means
        (u_re, u_im), (w_re, w_im) = benchmark.published_formulas(tensor, stages)
        dense = torch.cat([torch.cat([w_re + u_re, w_im - u_im], 1), torch.cat([w_im + u_im, u_re - w_re], 1)])
        expected = quantize(weight, stages).dequantize()
        assert np.linalg.norm(dense.float().numpy() - expected) < 0.06 * np.linalg.norm(expected)


def test_ternary_form_computes_what_its_weights_say(tmp_path: Path) -> None:
    """The nodes that are timed as ort-ternary-exact are the widely-linear product of the values in their bytes."""
    shape, kind = shapes.Shape(6, 36), models.LayerKind("ternary0")
    models.write_weights(kind, shape, 1, tmp_path / "data")
    models.write_model(kind, shape, 1, tmp_path / "data", tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 36)).astype(np.float32)
    stored = np.fromfile(tmp_path / "data", np.uint8, kind.operands(shape)[0].bytes).reshape(3, -1)
    values = (stored[:, :, None] >> np.array([0, 2, 4, 6]) & 3).reshape(3, -1)[:, : 8 * 18].astype(np.float64) - 2
    factors = np.linspace(-0.02, 0.02, 16).reshape(2, 8, 1)
    halves = x.reshape(3, 2, 18)
    vectors = np.stack([halves[:, [0, 1] * 4] * factors[0], halves[:, [1, 0] * 4] * factors[1]], axis=1).reshape(3, 2, -1)
    expected = (vectors @ values.T).reshape(3, 6)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5 * np.abs(expected).max())


def test_ternary_engines_run(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = ["--shape", "64x128", "-M", "1", "--threads", "1", "--repetitions", "1", "--megabytes", "0.05"]
    chosen = ["--engine", "ort-ternary", "--engine", "ort-ternary-exact"]
    assert bench_linear.main([*command, *chosen, "--flush-megabytes", "1", "--json", str(file)]) == 0
    assert {r["engine"] for r in json.loads(file.read_text())} == {"ort-ternary", "ort-ternary-exact"}


def test_the_models_of_the_count_on_arm_compute_what_they_say(tmp_path: Path) -> None:
    """Here on x86: benchmarks/arm/nodes.py checks it again on every processor that it counts on."""
    matrices = nodes.make_models(tmp_path)
    assert set(matrices) == set(nodes.KINDS)
    x = np.random.default_rng(3).standard_normal((3, nodes.K)).astype(np.float32)
    for kind, matrix in matrices.items():
        options = ort.SessionOptions()
        if kind == "lut":
            options.register_custom_ops_library(library_path())
        y = ort.InferenceSession(str(tmp_path / f"{kind}.onnx"), options).run(None, {"x": x})[0]
        expected = x @ matrix.T
        assert np.linalg.norm(y - expected) < nodes.TOLERANCE * np.linalg.norm(expected), kind
    assert ort.InferenceSession(str(tmp_path / "empty.onnx")).run(None, {"x": x})[0].shape == (3, 1)
