"""The folder that an export writes: its files, their contents, and that it appears complete or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fairy2i_export
from export_helpers import config_of, edit_json, make_checkpoint, write_tokenizer
from fairy2i_export import export
from fairy2i_export.codes.layout import PackedLinear, unpack
from fairy2i_export.compile import run as exporter
from fairy2i_export.errors import CheckpointError, OutputError, WeightError
from fairy2i_export.output.progress import Observer
from fairy2i_export.output.sizes import Estimate
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime.folder import LOGITS_TO_KEEP


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "out")
    expected = {"model.onnx", "model.onnx.data", "genai_config.json", "README.md", "config.json", "SHA256SUMS"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert names_in(tmp_path / "out") == expected
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    assert report.output_bytes == sum(
        path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != "README.md"
    )

    extra = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
    for name in extra:
        (source / name).write_text(
            '{"eos_token_id": 2}' if name == extra[-1] else "{}" if name.endswith("json") else "{{ messages }}"
        )
    export(source, tmp_path / "more")
    assert names_in(tmp_path / "more") == expected | set(extra)
    for name in (*extra, "config.json", "tokenizer.json"):
        assert (tmp_path / "more" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
def test_external_data_is_aligned_and_in_graph_order(source: Path, tmp_path: Path, row_multiplier: str) -> None:
    export(source, tmp_path / "out", row_multiplier=row_multiplier, lm_head="int8")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    places = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            assert entry["location"] == "model.onnx.data"
            places.append((tensor.name, int(entry["offset"]), int(entry["length"])))
        else:
            assert len(tensor.raw_data) <= 1024
    assert sum(name.endswith(".packed") for name, _, _ in places) == 14
    end = 0
    for name, offset, length in places:
        assert offset % 4096 == 0, name
        assert end <= offset < end + 4096, name
        end = offset + length
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == end
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 60_000


def test_packed_bytes_are_those_of_the_quantizer(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "out", stages=3)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    checkpoint = open_checkpoint(source)
    for linear in report.rewritten:
        packed, scales = tensors[f"{linear.name}.packed"], tensors[f"{linear.name}.scales"]
        found = unpack(PackedLinear(packed, scales, linear.out_features // 2, linear.in_features // 2, 3))
        expected = fairy2i_export.quantize(checkpoint.read(linear.weight), 3)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(found.scales, expected.scales)


def test_metadata(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", stages=1, lm_head="int8", embedding="int8", row_multiplier="rms", profile="fp32")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {item.key: item.value for item in model.metadata_props} == {
        "fairy2i.format_version": "1",
        "fairy2i.layout_version": "1",
        "fairy2i.backend": "fairy2i",
        "fairy2i.stages": "1",
        "fairy2i.profile": "fp32",
        "fairy2i.source": "model",
        "fairy2i.source_sha256": open_checkpoint(source).sha256(),
        "fairy2i.tool_version": fairy2i_export.__version__,
        "fairy2i.lm_head": "int8",
        "fairy2i.embedding": "int8",
        "fairy2i.quantizer": "greedy",
        "fairy2i.row_multiplier": "rms",
        "fairy2i.col_multiplier": "none",
        "fairy2i.scales": "computed",
        "fairy2i.architecture": "LlamaForCausalLM",
        "fairy2i.kv_cache": "float32",
    }
    assert model.producer_name == "fairy2i-export"


def test_the_same_checkpoint_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "a")
    export(source, tmp_path / "b")
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_genai_config(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9})
    )
    export(source, tmp_path / "out", context_length=64)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("llama", 210, 64)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 5], 2)
    assert decoder["session_options"]["custom_ops_library"] == "libfairy2i_ops.so"
    assert "intra_op_num_threads" not in decoder["session_options"]
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [decoder[key] for key in sizes] == [8, 72, 9, 3, 2]
    search = config["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"], search["max_length"]) == (True, 0.6, 0.9, 64)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    layers = range(2)
    named = {decoder["inputs"]["input_ids"], decoder["inputs"]["attention_mask"]}
    named |= {decoder["inputs"][f"past_{part}_names"] % i for part in ("key", "value") for i in layers}
    assert named == inputs - {LOGITS_TO_KEEP}  # which genai leaves alone
    named = {decoder["outputs"]["logits"]}
    named |= {decoder["outputs"][f"present_{part}_names"] % i for part in ("key", "value") for i in layers}
    assert named == outputs


@pytest.mark.parametrize(
    ("stated", "expected", "warned"),
    [
        ({}, (False, 1.0, 50, 1.0, 1.0), 0),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0}, (True, 0.6, 0, 1.0, 1.0), 0),
        ({"temperature": 0.7, "top_p": 0.9}, (True, 0.7, 50, 0.9, 1.0), 0),  # says how, so it samples: as in our runtime
        ({"do_sample": True, "temperature": 0}, (False, 1.0, 50, 1.0, 1.0), 0),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.2}, (False, 1.0, 50, 1.0, 1.2), 0),
        ({"do_sample": "no", "temperature": -1, "top_k": float("nan")}, (False, 1.0, 50, 1.0, 1.0), 3),
        ({"do_sample": True, "top_k": float("inf"), "top_p": 7}, (True, 1.0, 50, 1.0, 1.0), 2),
    ],
)
def test_sampling_of_genai_config_is_what_the_runtime_understands(
    source: Path, tmp_path: Path, stated: dict[str, Any], expected: tuple[Any, ...], warned: int
) -> None:
    (source / "generation_config.json").write_text(json.dumps(stated))
    report = export(source, tmp_path / "out", trained=True)
    search = json.loads((report.path / "genai_config.json").read_text())["search"]
    found = tuple(search[name] for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"))
    assert found == expected
    assert len([text for text in report.warnings if "generation_config.json" in text and "it is ignored" in text]) == warned


def test_end_of_text_by_name_and_none_at_all(source: Path, tmp_path: Path) -> None:
    edit_json(source / "config.json", eos_token_id=None, bos_token_id=None)
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    report = export(source, tmp_path / "named", trained=True)
    model = json.loads((report.path / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"]) == (1, 2)
    assert report.warnings == ()
    (source / "tokenizer_config.json").unlink()
    report = export(source, tmp_path / "none", trained=True)
    model = json.loads((report.path / "genai_config.json").read_text())["model"]
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & set(model)
    assert "names no end-of-sequence token" in report.warnings[0]


def test_long_contexts_are_capped_by_default(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", max_position_embeddings=131072)
    assert export(source, tmp_path / "a").options.context_length == 4096
    report = export(source, tmp_path / "b", context_length=5000)
    model = onnx.load(report.path / "model.onnx", load_external_data=False)
    assert next(list(t.dims) for t in model.graph.initializer if t.name == "rotary.cos") == [5000, 4]
    assert json.loads((report.path / "genai_config.json").read_text())["search"]["max_length"] == 2048


def test_tokenizer_trouble(source: Path, tmp_path: Path) -> None:
    write_tokenizer(source, words=211)
    with pytest.raises(CheckpointError, match=r"ids up to 210, .* has 210; the tokenizer belongs to another model"):
        export(source, tmp_path / "out")
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        export(source, tmp_path / "out")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing.*AutoTokenizer"):
        export(source, tmp_path / "out")
    assert names_in(tmp_path) == {"model"}


def test_an_existing_folder_is_kept_unless_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(source, out, stages=1)
    before = (out / "model.onnx.data").read_bytes()
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        export(source, out)
    assert (out / "model.onnx.data").read_bytes() == before
    (out / "tokenizer.onnx").write_text("from the old export")
    report = export(source, out, force=True)
    assert report.options.stages == 2
    assert (out / "model.onnx.data").read_bytes() != before
    assert "tokenizer.onnx" not in names_in(out)
    assert names_in(tmp_path) == {"model", "out"}


def test_force_replaces_nothing_but_exports(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"irreplaceable")
    for out, words in (
        (other, "no earlier export"),
        (source, "holds the source checkpoint"),
        (tmp_path, "holds the source checkpoint"),
        (source / "config.json", "no folder"),
    ):
        with pytest.raises(OutputError, match=words):
            export(source, out, force=True)
    assert (other / "cat.jpg").read_bytes() == b"irreplaceable"
    empty = tmp_path / "empty"
    empty.mkdir()
    export(source, empty, force=True)
    assert "model.onnx" in names_in(empty)


@pytest.mark.parametrize("error", [WeightError("bad"), OSError(28, "No space left on device"), ZeroDivisionError("bug")])
def test_a_failure_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = tmp_path / "new" / "deep" / "out"
    seen: list[set[str]] = []

    class Failing(Observer):
        done = 0

        def advance(self, amount: int) -> None:
            self.done += 1
            if self.done == 12:
                seen.append(names_in(out.parent))
                raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        export(source, out, observer=Failing())
    assert len(seen[0]) == 1  # the temporary folder was there
    assert names_in(tmp_path) == {"model"}

    export(source, tmp_path / "kept", stages=1)
    before = (tmp_path / "kept" / "model.onnx.data").read_bytes()
    out = tmp_path / "kept"
    with pytest.raises(expected):
        export(source, out, force=True, observer=Failing())
    assert (tmp_path / "kept" / "model.onnx.data").read_bytes() == before
    assert names_in(tmp_path) == {"model", "kept"}


def test_a_folder_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        export(source, tmp_path / "file" / "out")


def test_a_full_disk_is_noticed_before_the_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "make_estimate", lambda *_: Estimate(0, 1 << 60))
    with pytest.raises(OutputError, match="the disk has"):
        export(source, tmp_path / "out")
    assert names_in(tmp_path) == {"model"}


def test_the_folder_has_ordinary_permissions(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_default_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(source).path == Path("model-fairy2i")
    assert (tmp_path / "model-fairy2i" / "model.onnx").exists()


def test_progress_and_estimate_add_up(source: Path, tmp_path: Path) -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.phases: list[list[Any]] = []
            self.estimate: Estimate | None = None

        def planned(self, estimate: Estimate, options: Any) -> None:
            self.estimate = estimate

        def phase(self, title: str, total: int) -> None:
            self.phases.append([title, total, 0])

        def advance(self, amount: int) -> None:
            self.phases[-1][2] += amount

    recorder = Recorder()
    report = export(source, tmp_path / "out", observer=recorder)
    ((quantizing, parameters, done),) = recorder.phases
    assert quantizing == "quantizing"
    assert parameters == done == report.parameters == 2 * 210 * 72 + 2 * (72 * 72 * 2 + 72 * 24 * 2 + 3 * 72 * 150) + 5 * 72
    assert recorder.estimate is not None
    assert report.output_bytes == pytest.approx(recorder.estimate.output_bytes, rel=0.2)


def test_the_model_card_tells_what_was_done(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", stages=3, lm_head="int8")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("`model`", "3, bf16-reference, greedy", "14 of 15", "1 int8 (--lm-head int8)", "fairy2i generate out"):
        assert words in card
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert export(source, tmp_path / "chat").chat_template
    assert "\nfairy2i chat chat\n" in (tmp_path / "chat" / "README.md").read_text()


def run_python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_exporting_imports_neither_torch_nor_transformers(source: Path, tmp_path: Path) -> None:
    code = """
import sys
import fairy2i_export
assert "onnx" not in sys.modules, "importing the package shall be cheap"
fairy2i_export.export(sys.argv[1], sys.argv[2])
import fairy2i_export.commands.export, fairy2i_export.commands.display
print(sorted({"torch", "transformers", "safetensors.torch"} & set(sys.modules)))
"""
    assert run_python(code, str(source), str(tmp_path / "out")).strip() == "[]"


def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """24 layers of 2.4 M parameters: their weights alone are 115 MB as bfloat16, 14 MB packed.

    What grows is the graph: ours, and ONNX Runtime's of the result, which is tried; of either some 0.2 MB for a layer.
    """
    from export_helpers import tensors_of

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
    layer = dict(tensors_of(config_of(num_hidden_layers=1, **sizes)))
    code = """
import sys, fairy2i_export
print(fairy2i_export.export(sys.argv[1], sys.argv[2]).peak_ram_bytes)
"""
    peaks = []
    for layers in (2, 24):
        repeated = {name.replace("layers.0", f"layers.{i}"): array for i in range(layers) for name, array in layer.items()}
        source = make_checkpoint(tmp_path / f"m{layers}", tensors=repeated, num_hidden_layers=layers, **sizes)
        peaks.append(int(run_python(code, str(source), str(tmp_path / f"out{layers}"))))
    assert peaks[1] - peaks[0] < 12_000_000
