"""iFairy models against numbers that the released code gave for two tiny random ones: logits, caches, codes, tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

import fairy2i_runtime
from fairy2i_export import export, rewrite_onnx
from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.strategies.ifairy import quantize_conjugate
from fairy2i_export.commands.tools import main
from fairy2i_export.decoder.rope import ROPE_FREQUENCIES, Rope
from fairy2i_export.onnx_graph.complex_values import rounded_halves
from fairy2i_export.onnx_graph.operator import OPSET
from fairy2i_export.onnx_graph.rope_tables import inverse_frequencies
from fairy2i_export.onnx_graph.writer import GraphWriter
from fairy2i_export.output.contract.nodes import read_nodes
from ifairy_models import DATA, MODELS, TOLERANCE, Runner, checkpoint, golden

FLOAT32 = {"profile": "fp32", "rope_frequencies": "f32"}  # what float32 runs of the released code compute
EAGER = {**FLOAT32, "attention_scale": "eager"}
ONCE, STEPS = None, 16  # tokens of the prompt: all of the text, or some and then one after the other
# name of the golden logits, options of the export, prompt, positions
LOGITS: dict[str, tuple[dict[str, Any], int | None, Any]] = {
    "logits_fp32_flash": (FLOAT32, ONCE, None),
    "logits_fp32_flash_incremental16": (FLOAT32, STEPS, None),
    "logits_fp32_flash_pos1000": (FLOAT32, ONCE, np.arange(1000, 1024)),
    "logits_fp32_flash_gap": (FLOAT32, ONCE, "gap_position_ids"),
    "logits_fp32_eager": (EAGER, ONCE, None),
    "logits_fp32_eager_incremental16": (EAGER, STEPS, None),
    "logits_fp32_flash_ropebf16_wbf16": ({}, ONCE, None),
    "logits_fp32_flash_ropebf16_gap": ({"profile": "fp32"}, ONCE, "gap_position_ids"),
}
UNROUNDED = {"logits_fp32_flash_noactquant": FLOAT32, "logits_fp32_eager_noactquant": EAGER}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the folder of a model exported with options; the same one when it is asked for again."""
    root, made = tmp_path_factory.mktemp("ifairy"), {}

    def give(model: str, **options: Any) -> Path:
        source = root / model
        if not source.exists():
            checkpoint(source, model)
        key = repr((model, sorted(options.items())))
        if key not in made:
            made[key] = export(source, root / f"out-{len(made)}", **options).path
        return made[key]

    return give


def ids_of(model: str) -> npt.NDArray[np.int64]:
    return np.asarray(golden(model)["input_ids"], np.int64).reshape(1, -1)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_the_released_code(folder: Any, model: str, name: str) -> None:
    expected, (options, prompt, positions) = golden(model), LOGITS[name]
    if name not in expected:
        assert (model, name) == ("A_mha", "logits_fp32_flash_ropebf16_gap")  # one rounding there is too close to a tie
        return
    if positions is not None:
        positions = np.asarray(expected[positions] if isinstance(positions, str) else positions, np.int64).reshape(1, -1)
    runner = Runner(folder(model, **options) / "model.onnx", positions=positions is not None)
    found, _ = runner.run(ids_of(model), positions, prompt)
    np.testing.assert_allclose(found, expected[name].reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kernel", ["lut", "dot"])
@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("model", MODELS)
def test_other_kernels_give_the_same_logits(folder: Any, model: str, name: str, kernel: str) -> None:
    """They work on the numbers that the model itself rounds activations to, and round nothing else."""
    expected, (options, prompt, positions) = golden(model), LOGITS[name]
    if name not in expected:
        return  # as above
    if positions is not None:
        positions = np.asarray(expected[positions] if isinstance(positions, str) else positions, np.int64).reshape(1, -1)
    runner = Runner(folder(model, **options) / "model.onnx", kernel, positions=positions is not None)
    found, _ = runner.run(ids_of(model), positions, prompt)
    np.testing.assert_allclose(found, expected[name].reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNROUNDED)
@pytest.mark.parametrize("model", MODELS)
def test_logits_without_rounding_of_activations(folder: Any, model: str, name: str) -> None:
    """No option leaves it out; the graph is edited. Everything but the rounding is compared without its sharp edges."""
    runner = Runner(folder(model, **UNROUNDED[name]) / "model.onnx", rounding=False)
    found, _ = runner.run(ids_of(model))
    np.testing.assert_allclose(found, golden(model)[name].reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_every_golden_array_of_logits_is_compared(model: str) -> None:
    names = {name for name in golden(model) if name.startswith("logits_fp32")}
    assert names <= {*LOGITS, *UNROUNDED}


@pytest.mark.parametrize("model", MODELS)
def test_caches_are_those_of_the_released_code(folder: Any, model: str) -> None:
    """Real parts of a head, then its imaginary ones; keys after rotation."""
    expected = golden(model)
    _, cache = Runner(folder(model, **FLOAT32) / "model.onnx").run(ids_of(model), prompt=STEPS)
    for layer in range(2):
        for part in ("key", "value"):
            parts = [expected[f"kv_flash_layer{layer}_{part[0]}_{half}"] for half in ("real", "imag")]
            found = cache[f"past_key_values.{layer}.{part}"]
            np.testing.assert_allclose(found, np.concatenate(parts, axis=-1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_codes_and_scales_are_those_of_the_released_code(folder: Any, model: str) -> None:
    with np.load(DATA / model / "phasequant.npz") as found:
        expected = dict(found)
    order = np.array([0, 2, 1, 3])  # of +1, -1, +i, -i there; here a code k stands for i^k
    for options, kind in ((FLOAT32, "scales_f32"), ({}, "scales_bf16")):
        nodes = read_nodes(folder(model, **options) / "model.onnx")
        assert len(nodes) == len(expected) / 3 == 14
        for node in nodes:
            name, q = node.name.removeprefix("model.").replace("layers", "layer"), unpack(node.operands)
            np.testing.assert_array_equal(q.codes[0, -1], order[expected[f"{name}.codes"]])
            # float32 sums over a matrix depend on their order in the last bit, what is rounded to bfloat16 does not
            tolerance = 1.2e-7 if kind == "scales_f32" else 0
            np.testing.assert_allclose(q.scales[0, -1], expected[f"{name}.{kind}"].astype(np.float32), rtol=tolerance)


def test_inspect_says_that_layers_round_their_inputs(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder("B_gqa", **FLOAT32)
    assert main(["inspect", str(path)]) == 0
    assert "14 of 14 layers round their inputs to 8 bits" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {layer["activation_bits"] for layer in found["layers"]} == {8}


def unit() -> dict[str, npt.NDArray[Any]]:
    with np.load(DATA / "unit.npz") as found:
        return dict(found)


def test_scales_go_through_two_reciprocals() -> None:
    """A matrix whose entries on both axes have one magnitude: the scale that the released code gives it in bfloat16."""
    arrays = unit()
    for mean, expected in zip(arrays["mean_abs_bf16"], arrays["effective_scale_bf16"], strict=True):
        weight = np.array([[mean, 0], [0, mean]], ml_dtypes.bfloat16)  # mean, i mean
        np.testing.assert_array_equal(quantize_conjugate(weight, "bf16-reference").scales[0, 1], expected)
    tiny = np.array([[1e-7, 0], [0, 1e-7]], np.float32)
    np.testing.assert_allclose(quantize_conjugate(tiny, "fp32").scales[0, 1], 1e-5, rtol=1.2e-7)


def test_entries_between_two_axes() -> None:
    """Ties and zeros; for the first, equal and positive parts, the released code's own results differ between machines."""
    arrays = unit()
    re, im = (arrays[f"tie_{part}"].astype(np.float32) for part in ("re", "im"))
    signs = arrays["tie_sign_re"] + 1j * arrays["tie_sign_im"]
    codes = quantize_conjugate(np.concatenate([re, im]), "fp32").codes[0, 1]
    np.testing.assert_array_equal((1j**codes)[0, 1:].round(), signs[0, 1:])
    assert codes[0, 0] == 1


def test_rounding_of_activations() -> None:
    """Rows of very different sizes, one of zeros, one below the smallest magnitude."""
    arrays = unit()
    parts = [
        np.concatenate([arrays[f"{name}_{part}"] for part in ("real", "imag")], axis=1) for name in ("act_in", "act_out_f32")
    ]
    x, expected = (part[None].astype(np.float32) for part in parts)
    graph = GraphWriter()
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "sequence", x.shape[2]]))
    rounded = rounded_halves(graph, value, x.shape[2] // 2, 8)
    assert rounded_halves(graph, value, x.shape[2] // 2, 8) is rounded  # made once
    rounded.type = ir.TensorType(ir.DataType.FLOAT)
    constants = list(graph.initializers.values())
    made = ir.Graph(
        [value], [rounded], nodes=graph.nodes, initializers=constants, opset_imports={"": OPSET}, name="rounding"
    )
    session = ort.InferenceSession(ir.serde.serialize_model(ir.Model(made, ir_version=8)).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("head_dim", [16, 64, 96])
def test_rotary_frequencies(head_dim: int) -> None:
    """bfloat16 ones to the bit; float32 ones of torch differ by a bit here and there."""
    with np.load(DATA / f"inv_freq_hd{head_dim}.npz") as found:
        expected = {name: found[name].astype(np.float32) for name in found.files}
    assert set(expected) == set(ROPE_FREQUENCIES)
    for name, values in expected.items():
        got = inverse_frequencies(Rope("default", 10000.0, frequencies=name), 2 * head_dim)
        np.testing.assert_allclose(got, values, rtol=1.2e-7 if name == "f32" else 0, atol=0)


@pytest.mark.parametrize("backend", [{"backend": "matmulnbits", "accuracy_level": 0}, {"backend": "dense"}])
@pytest.mark.parametrize("model", MODELS)
def test_other_backends(folder: Any, model: str, backend: dict[str, Any]) -> None:
    found, _ = Runner(folder(model, **FLOAT32, **backend) / "model.onnx").run(ids_of(model), prompt=STEPS)
    expected = golden(model)["logits_fp32_flash_incremental16"]
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("error")
def test_a_dense_model_is_recognised_by_the_rewriter(folder: Any, tmp_path: Path) -> None:
    """Its matrices [[re, im], [im, -re]] have codes again, and what rounds their inputs stays."""
    report = rewrite_onnx(folder("B_gqa", **FLOAT32, backend="dense") / "model.onnx", tmp_path / "out")
    assert len(read_nodes(report.path / "model.onnx")) == 14
    found, _ = Runner(report.path / "model.onnx").run(ids_of("B_gqa"))
    np.testing.assert_allclose(found, golden("B_gqa")["logits_fp32_flash"].reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_function_body_in_standard_operators(folder: Any, model: str) -> None:
    """Without the library of operators; one layer rounds a value the other way if its float32 sum differs much."""
    found, _ = Runner(folder(model, **FLOAT32) / "model.onnx", kernel=None).run(ids_of(model))
    np.testing.assert_allclose(found, golden(model)["logits_fp32_flash"].reshape(found.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_same_tokens_in_runtime_and_genai(folder: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy2i_runtime import genai

    og = pytest.importorskip("onnxruntime_genai")
    path, prompt = folder(model, **FLOAT32), ids_of(model)[0].tolist()
    expected = golden(model)["greedy_flash_ids"].reshape(-1).tolist()
    count = len(expected) - len(prompt)
    found = fairy2i_runtime.load(path, kernel="exact").generate(prompt, max_new_tokens=count, temperature=0)
    assert [*prompt, *found.token_ids] == expected
    monkeypatch.setitem(os.environ, "FAIRY2I_KERNEL", "exact")
    loaded = genai.load(path)
    parameters = og.GeneratorParams(loaded)
    parameters.set_search_options(do_sample=False, max_length=len(expected))
    generator = og.Generator(loaded, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)] == expected


@pytest.mark.parametrize("model", MODELS)
def test_texts_in_a_batch_do_not_disturb_each_other(folder: Any, model: str) -> None:
    texts = [ids_of(model)[0].tolist(), ids_of(model)[0].tolist()[5:]]
    loaded = fairy2i_runtime.load(folder(model, **FLOAT32), kernel="exact")
    for text, found in zip(texts, loaded.logits_batch(texts), strict=True):
        np.testing.assert_allclose(found, loaded.logits(text), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cache", ["float16", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_smaller_caches_hold_nearly_the_same(folder: Any, model: str, cache: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    vocabulary = golden(model)["logits_fp32_flash"].shape[-1]
    text.write_text(" ".join(f"w{3 + 7 * i % (vocabulary - 3)}" for i in range(200)))
    options = {"cache_calibration": text} if cache == "int8" else {}
    found = Runner(folder(model, kv_cache=cache, **FLOAT32, **options) / "model.onnx", rounding=False)
    logits, _ = found.run(ids_of(model), prompt=STEPS)
    expected = golden(model)["logits_fp32_flash_noactquant"].reshape(logits.shape)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error < {"float16": 0.02, "int8": 0.1}[cache]  # random models of this kind enlarge small changes


@pytest.mark.parametrize(
    "options", [{"embedding": "int8"}, {"lm_head": "int8"}, {"lm_head": "int4"}, {"embedding": "float16"}]
)
def test_embedding_and_head_as_for_other_models(folder: Any, options: dict[str, Any]) -> None:
    """Blocks of 32 columns of a random matrix: 8 bits cost some 0.5 %, 4 bits some 10 %."""
    found = Runner(folder("B_gqa", **FLOAT32, **options) / "model.onnx", rounding=False).run(ids_of("B_gqa"))[0]
    expected = golden("B_gqa")["logits_fp32_flash_noactquant"].reshape(found.shape)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < {"float16": 1e-5, "int8": 0.06, "int4": 0.2}[next(iter(options.values()))]
