"""Checkpoints and ONNX models that would stall the exporter, fill its memory or be damaged in silence: one error each, at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.compile import run as compile_run
from fairy2i_export.errors import ArchitectureError, CheckpointError, Fairy2iError, ModelError
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_export.source.safetensors_file import SafetensorsFile
from rewrite_helpers import function_calls

pytestmark = pytest.mark.timeout(120)
unix = pytest.mark.skipif(os.name == "nt", reason="no such files there")
READ = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "model.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def refused(source: Path, match: str) -> None:
    with pytest.raises(Fairy2iError, match=match):
        export(source, source.parent / "out")
    assert not (source.parent / "out").exists()


@unix
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_what_is_no_file_of_a_checkpoint(source: Path, name: str, kind: str) -> None:
    path = source / name
    if name.endswith("index.json"):
        (source / "model.safetensors").unlink()
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20 << 30)
    refused(source, rf"{path.name}: (expected .* found|is a link to /dev/zero|not a safetensors file)")


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".json")])
def test_json_that_is_nested_too_deeply(source: Path, name: str) -> None:
    if name.endswith("index.json"):
        (source / "model.safetensors").unlink()
    for text in ("[" * 100_000, '{"a":' * 200 + "1" + "}" * 200):
        (source / name).write_text(text)
        if name in ("special_tokens_map.json", "added_tokens.json"):  # the tokens that they name are not known, and no more
            out = source.parent / "out"
            assert any("too deeply" in warning for warning in export(source, out, force=True).warnings)
            assert not (out / name).exists()
        else:
            refused(source, "nested too deeply")


NUMBERS: list[dict[str, Any]] = [
    *({key: value} for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                               "num_key_value_heads", "head_dim", "max_position_embeddings")
      for value in (10**8, 10**400, 0, -1, True, 2.5, float("nan"), "4", [4])),
    *({key: value} for key in ("rope_theta", "rms_norm_eps") for value in (10**400, float("inf"), float("nan"), 0, -1, True, "1")),
    *({"rope_scaling": {"rope_type": "yarn", "factor": value}} for value in (1e308, 0, float("nan"), True, 10**400)),
    {"rope_scaling": {"rope_type": "yarn", "factor": 2}, "rope_theta": 1.0},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1e-300}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2, "attention_factor": float("inf")}},
    {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 1, "short_factor": [1], "long_factor": [1]}},
    {"rope_scaling": {"rope_type": "longrope", "short_factor": [10**400], "long_factor": [1]}},
    {"rope_scaling": {"rope_type": ["yarn"]}},
    {"rope_scaling": [1]},
    {"hidden_act": ["silu"]},
    {"num_hidden_layers": 10**8, "architectures": ["Qwen3ForCausalLM"]},
    {"num_hidden_layers": 10**8, "architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 8},
    {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 10**400, "sliding_window": 8},
    {"architectures": ["Qwen3ForCausalLM"], "max_window_layers": 10**400},
    {"architectures": ["MistralForCausalLM"], "sliding_window": 10**400},
]  # fmt: skip


@pytest.mark.parametrize("changes", NUMBERS, ids=lambda changes: json.dumps(changes)[:60])
def test_numbers_out_of_their_range(source: Path, changes: dict[str, Any]) -> None:
    if changes == {"max_position_embeddings": 10**8}:
        changes = {"max_position_embeddings": 10**9}
    edit_json(source / "config.json", **changes)
    with pytest.raises((CheckpointError, ArchitectureError), match=r"config\.json: |expected") as error:
        export(source, source.parent / "out")
    assert len(str(error.value)) < 400


def test_sampling_defaults_that_hosts_cannot_read(source: Path) -> None:
    (source / "generation_config.json").write_text(f'{{"temperature": NaN, "top_k": Infinity, "top_p": 1{"0" * 400}}}')
    out = export(source, source.parent / "out").path
    search = json.loads((out / "genai_config.json").read_text(), parse_constant=pytest.fail)["search"]
    assert (search["temperature"], search["top_k"], search["top_p"]) == (1.0, 50, 1.0)


def header(path: Path, entries: str, data: int) -> Path:
    path.write_bytes(len(entries.encode()).to_bytes(8, "little") + entries.encode() + b"\0" * data)
    return path


def entry(name: str, begin: int, end: int, dtype: str = "F32", shape: str = "[2]") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("entries", "data", "words"),
    [
        ([entry("a", 0, 8), entry("b", 16, 24)], 24, "begins 8 bytes behind"),
        ([entry("a", 0, 8), entry("b", 4, 12)], 12, "overlaps"),
        ([entry("a", 0, 8)], 12, "4 bytes behind the last"),
        ([entry("a", 0, 8), entry("b", 8, 16)], 12, "truncated"),
        ([entry("a", 0, 8), entry("a", 8, 16)], 16, "stands in it twice"),
        ([entry("a", 0, 8, "I64")], 8, r"I64 \[2\] needs 16 bytes"),
        ([entry("a", 0, 8, shape="[-2]")], 8, "damaged header entry"),
        ([entry("a", 0, 8, shape="[1e400]")], 8, "damaged header entry"),
        ([entry("a", 0, 8, shape=f"[{2**62},{2**62}]")], 8, "needs"),
        (['"a":' + "[" * 100_000], 0, "header is no JSON"),
    ],
)
def test_safetensors_that_are_damaged(tmp_path: Path, entries: list[str], data: int, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        SafetensorsFile(header(tmp_path / "m.safetensors", "{" + ",".join(entries) + "}", data))


def test_many_entries_and_one_of_them_twice(tmp_path: Path) -> None:
    """Looked for once, not once for each: with a look per entry this takes hours."""
    count = 200_000
    entries = [entry(f"t{i}", 4 * i, 4 * i + 4, shape="[1]") for i in range(count)]
    path = header(tmp_path / "m.safetensors", "{" + ",".join(entries) + "}", 4 * count)
    assert len(SafetensorsFile(path).tensors) == count
    header(path, "{" + ",".join([*entries, entries[-1]]) + "}", 4 * count)
    with pytest.raises(CheckpointError, match=f"t{count - 1} stands in it twice"):
        SafetensorsFile(path)


def test_an_export_that_would_not_load_is_not_finished(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compile_run.write_genai_config

    def damaged(folder: Path, *args: Any, **options: Any) -> None:
        real(folder, *args, **options)
        edit_json(folder / "genai_config.json", model={"context_length": 8})

    with monkeypatch.context() as patch:
        patch.setattr(compile_run, "write_genai_config", damaged)
        refused(source, "what was made of it does not load")

    def broken(prepared: Any, data: Any, folder: Path, sha256: str) -> None:
        write(prepared, data, folder, sha256)
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        model.graph.node[-1].op_type = "NoSuchOperator"
        onnx.save(model, folder / "model.onnx")

    write = compile_run._write_model
    monkeypatch.setattr(compile_run, "_write_model", broken)
    refused(source, "does not load: .*NoSuchOperator")


WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def products(path: Path, count: int) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], name=f"l{i}") for i in range(count)]
    return save(path, nodes, [numpy_helper.from_array(WEIGHT, "w")], [f"y{i}" for i in range(count)])


def save(path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], outputs: list[str]) -> Path:
    values = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["b", 8])], values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_the_work_of_a_rewrite_grows_with_the_products(tmp_path: Path) -> None:
    def calls(count: int) -> int:
        path = products(tmp_path / f"{count}.onnx", count)
        return function_calls(lambda: rewrite_onnx(path, tmp_path / f"out-{count}", jobs=1, trained=True))

    calls(5)  # what is imported and remembered with the first one
    few, many = calls(100), calls(400)
    assert many < 4.4 * few


@unix
@pytest.mark.parametrize("what", ["pipe", "deep", "device"])
def test_a_strange_genai_config_beside_an_onnx_model(tmp_path: Path, what: str) -> None:
    model, path = products(tmp_path / "m.onnx", 1), tmp_path / "genai_config.json"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"genai_config\.json: "):
        rewrite_onnx(model, tmp_path / "out", trained=True)
    assert not (tmp_path / "out").exists()


@unix
def test_an_onnx_file_of_many_gigabytes(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(ModelError, match="at most 2,147,483,647"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("location", "d"), ("length", "256"), ("length", "128")], "twice"),
        ([("location", "d"), ("length", "128")], "has 128 bytes, its shape"),
        ([("location", "d"), ("offset", "9" * 5000)], "expected numbers of bytes"),
        ([("location", "d"), ("offset", "64")], "ends at byte 320"),
        ([("location", "../d")], "outside the model's folder"),
    ],
)
def test_external_data_that_contradict_themselves(tmp_path: Path, entries: list[tuple[str, str]], words: str) -> None:
    (tmp_path / "d").write_bytes(WEIGHT.tobytes())
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[8, 8], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in entries:
        item = tensor.external_data.add()
        item.key, item.value = key, value
    save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor], ["y"])
    with pytest.raises(ModelError, match=words):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", trained=True)


def test_an_initializer_that_is_there_twice(tmp_path: Path) -> None:
    twice = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(-WEIGHT, "w")]
    save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], twice, ["y"])
    with pytest.raises(ModelError, match="two initializers are called 'w'"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", trained=True)


MALFORMED = {
    "an axis out of range": [helper.make_node("Transpose", ["w"], ["a"], perm=[0, 7])],
    "an axis twice": [helper.make_node("Transpose", ["w"], ["a"], perm=[0, 0])],
    "no axes": [helper.make_node("Transpose", ["w"], ["a"], perm="x")],
    "an unknown type": [helper.make_node("Cast", ["w"], ["a"], to=99)],
    "no type": [helper.make_node("Cast", ["w"], ["a"])],
    "no input": [helper.make_node("Identity", [], ["a"])],
    "no shape": [helper.make_node("Reshape", ["w"], ["a"])],
    "no value": [helper.make_node("Constant", [], ["a"])],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_nodes_on_the_way_to_a_weight(tmp_path: Path, what: str) -> None:
    nodes = [*MALFORMED[what], helper.make_node("MatMul", ["x", "a"], ["y"], name="lin")]
    save(tmp_path / "m.onnx", nodes, [numpy_helper.from_array(WEIGHT, "w")], ["y"])
    with pytest.raises(ModelError, match=r"m\.onnx: "):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", trained=True)
