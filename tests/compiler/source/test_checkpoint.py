"""Opening checkpoints: what is read, and what is refused with which message."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from export_helpers import edit_json, make_checkpoint, tensors_of, write_safetensors
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import ArchitectureError, CheckpointError, OptionError
from fairy2i_export.source.checkpoint import Checkpoint, open_checkpoint
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.safetensors_file import SafetensorsFile


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def shard(source: Path) -> list[str]:
    """Turn the single file into three shards and an index."""
    config = json.loads((source / "config.json").read_text())
    tensors = [(name, array.astype(ml_dtypes.bfloat16)) for name, array in tensors_of(config)]
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    for i, name in enumerate(names):
        write_safetensors(source / name, dict(tensors[i::3]))
    weight_map = {name: names[i % 3] for i, (name, _) in enumerate(tensors)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (source / "model.safetensors").unlink()
    return names


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_tensors_come_back_as_stored(tmp_path: Path, dtype: Any) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", dtype=dtype))
    assert checkpoint.name == "model"
    for name, expected in tensors_of(checkpoint.config):
        got = checkpoint.read(name)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected.astype(dtype))


def test_shards_hold_the_same_tensors(source: Path) -> None:
    expected = {name: open_checkpoint(source).read(name) for name in open_checkpoint(source).owners}
    shard(source)
    checkpoint = open_checkpoint(source)
    assert len(checkpoint.files) == 3
    assert set(checkpoint.owners) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def test_files_of_the_safetensors_library_are_read(tmp_path: Path, source: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((), np.float16),
        "c": np.zeros((0, 3), np.float32),
    }
    save_file(arrays, source / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(source)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def test_hash_depends_on_names_and_contents_only(tmp_path: Path, source: Path) -> None:
    read: list[int] = []
    first = open_checkpoint(source).sha256(read.append)
    assert sum(read) == sum((source / name).stat().st_size for name in ("config.json", "model.safetensors"))
    same = make_checkpoint(tmp_path / "copy")
    assert open_checkpoint(same).sha256() == first
    data = bytearray((same / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (same / "model.safetensors").write_bytes(data)
    assert open_checkpoint(same).sha256() != first


def drop(source: Path, name: str) -> None:
    (source / name).unlink()


def damage_header(source: Path, **changes: Any) -> None:
    path = source / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"].update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def only_pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def missing_shard(source: Path) -> None:
    drop(source, shard(source)[1])


def truncated_shard(source: Path) -> None:
    path = source / shard(source)[2]
    path.write_bytes(path.read_bytes()[:-100])


def index_with_path(source: Path, name: str) -> None:
    shard(source)
    index = source / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "lm_head.weight": name})


def index_of_wrong_shard(source: Path) -> None:
    names = shard(source)
    index = source / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=dict.fromkeys(weight_map, names[0]))


def empty_index(source: Path) -> None:
    shard(source)
    (source / "model.safetensors.index.json").write_text("{}")


DAMAGES: list[Any] = [
    ("no config", lambda s: drop(s, "config.json"), "config.json: missing"),
    ("config is a list", lambda s: (s / "config.json").write_text("[]"), "expected a JSON object, found list"),
    ("config is no JSON", lambda s: (s / "config.json").write_text("{"), "not valid JSON"),
    ("config is no UTF-8", lambda s: (s / "config.json").write_bytes(b"\xff\xfe{}"), "not valid JSON"),
    ("no weights", lambda s: drop(s, "model.safetensors"), "no weights"),
    ("pickle only", only_pickle, "only pickle weights.*pytorch_model.bin.*save_pretrained"),
    ("stray file", lambda s: (s / "model.safetensors").rename(s / "adapter.safetensors"), "adapter.safetensors but neither"),
    ("empty file", lambda s: (s / "model.safetensors").write_bytes(b""), "truncated"),
    ("truncated header", lambda s: (s / "model.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{"), "truncated"),
    ("absurd header", lambda s: (s / "model.safetensors").write_bytes(b"\xff" * 100), "truncated"),
    ("no JSON header", lambda s: (s / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"notjson!"), "no JSON"),
    ("list header", lambda s: (s / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]"), "no JSON object"),
    ("negative offset", lambda s: damage_header(s, data_offsets=[-4, 100]), "damaged header entry for tensor lm_head"),
    ("reversed offsets", lambda s: damage_header(s, data_offsets=[100, 4]), "damaged header entry"),
    ("no shape", lambda s: damage_header(s, shape=None), "damaged header entry"),
    ("wrong size", lambda s: damage_header(s, shape=[3, 3]), "needs 18 bytes"),
    ("huge shape", lambda s: damage_header(s, shape=[1 << 62, 1 << 62]), "needs"),
    ("missing shard", missing_shard, "1 of 3 shards are missing, the first is model-00002-of-00003"),
    ("truncated shard", truncated_shard, "model-00003-of-00003.safetensors: truncated"),
    ("index into a parent", lambda s: index_with_path(s, "../x.safetensors"), "expected the name of a .safetensors file"),
    ("index with absolute path", lambda s: index_with_path(s, "/etc/x.safetensors"), "expected the name"),
    ("index to a backslash path", lambda s: index_with_path(s, "a\\x.safetensors"), "expected the name"),
    ("index to a pickle", lambda s: index_with_path(s, "x.bin"), "expected the name"),
    ("index to a number", lambda s: index_with_path(s, 3), "expected the name"),  # type: ignore[arg-type]
    ("index of a wrong shard", index_of_wrong_shard, "but it does not"),
    ("empty index", empty_index, "no weight_map"),
]


@pytest.mark.parametrize(("damage", "words"), [pytest.param(d, w, id=name) for name, d, w in DAMAGES])
def test_damaged_checkpoints_are_refused_at_once(source: Path, damage: Any, words: str) -> None:
    damage(source)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(source)


def test_a_file_that_shrinks_after_opening_is_noticed(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="ends early"):
        checkpoint.read("lm_head.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read("lm_head.weight")


def test_integer_weights_and_missing_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        make_checkpoint(tmp_path / "model", replace={"lm_head.weight": np.ones((210, 72), np.int8)})
    )
    with pytest.raises(CheckpointError, match=r"stored as I8.*already quantized"):
        checkpoint.read("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"tensor model\.nothing is missing"):
        checkpoint.read("model.nothing")


def test_sources_that_are_no_directory(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        open_source(tmp_path / "nothing" / "here")
    with pytest.raises(CheckpointError, match="no such file or directory"):
        open_source("nothing-here")
    with pytest.raises(CheckpointError, match="is a file"):
        open_source(source / "config.json")
    with pytest.raises(OptionError, match="is an ONNX model"):
        open_source("model.onnx")
    assert isinstance(open_source(str(source)), Checkpoint)


class HubDouble:
    """Stands in for the Hugging Face hub, which the tests must not reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, download: Path | Exception) -> None:
        import huggingface_hub

        self.download = download
        self.asked: dict[str, Any] = {}
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def snapshot(self, repo_id: str, **options: Any) -> str:
        self.asked = {"repo_id": repo_id, **options}
        if isinstance(self.download, Exception):
            raise self.download
        return str(self.download)


def test_a_hub_id_is_downloaded(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    hub = HubDouble(monkeypatch, source)
    checkpoint = open_source("owner/Some-Model")
    assert (checkpoint.name, checkpoint.directory) == ("owner/Some-Model", source)
    assert hub.asked["repo_id"] == "owner/Some-Model"
    patterns = hub.asked["allow_patterns"]
    for wanted in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert any(fnmatch(wanted, pattern) for pattern in patterns), wanted
    for unwanted in ("pytorch_model.bin", "consolidated.00.pth", "model.gguf", "modeling_llama.py"):
        assert not any(fnmatch(unwanted, pattern) for pattern in patterns), unwanted


class NetworkError(Exception):
    """Of a type this project has never heard of."""


def test_hub_failures(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    HubDouble(monkeypatch, LocalEntryNotFoundError("offline"))
    with pytest.raises(CheckpointError, match="cannot be reached"):
        open_source("owner/model")
    for error in (OSError("401 Unauthorized\nlong text"), NetworkError("\n401 Unauthorized")):
        HubDouble(monkeypatch, error)
        with pytest.raises(CheckpointError, match=r"failed: 401 Unauthorized$"):
            open_source("owner/gated")
    HubDouble(monkeypatch, source)
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="owner/pickled: this hub repository has no safetensors weights"):
        open_source("owner/pickled")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            ArchitectureError,
            r"MixtralForCausalLM is not supported.*Gemma2ForCausalLM.*LlamaForCausalLM.*fairy2i-export model\.onnx",
        ),
        ({"architectures": None, "model_type": "gpt2"}, ArchitectureError, "'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, ArchitectureError, "'gelu' is not supported; supported are silu, gelu_pytorch_tanh"),
        ({"sliding_window": 128}, ArchitectureError, "sliding_window"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ArchitectureError, "'dynamic'.*default, linear, llama3"),
        ({"num_key_value_heads": 2}, ArchitectureError, "no multiple of num_key_value_heads 2"),
        ({"num_attention_heads": 6}, ArchitectureError, "heads of 12 values.*multiple of 8"),
        ({"quantization_config": {"bits": 4}}, CheckpointError, "already quantized another way"),
        ({"hidden_size": None}, CheckpointError, "hidden_size: expected a whole number from 1 to 16,777,216, got None"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers"),
        ({"vocab_size": "many"}, CheckpointError, "vocab_size"),
        ({"intermediate_size": True}, CheckpointError, "intermediate_size"),
        ({"rms_norm_eps": float("nan")}, CheckpointError, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, CheckpointError, "expected true or false"),
    ],
)
def test_unsupported_configurations(source: Path, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    edit_json(source / "config.json", **changes)
    with pytest.raises(error, match=words):
        describe(open_checkpoint(source).config)


def write_header(path: Path, header: str, data: bytes) -> None:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(name: str, begin: int, end: int, count: int | None = None) -> str:
    shape = [(end - begin) // 4] if count is None else [count]
    return json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}})[1:-1]


# entries of the header, bytes of data, what is wrong with them ("": nothing)
PLACES = {
    "in order": ([entry("a", 0, 8), entry("b", 8, 12)], 12, ""),
    "in another order": ([entry("b", 8, 12), entry("a", 0, 8)], 12, ""),
    "an empty tensor at the end": ([entry("a", 0, 8), entry("b", 8, 8)], 8, ""),
    "an empty tensor before another": ([entry("a", 0, 8), entry("b", 0, 0)], 8, ""),
    "nothing at all": ([], 0, ""),
    "trailing bytes": ([entry("a", 0, 8)], 12, "4 bytes behind the last tensor"),
    "no tensor but data": ([], 4, "4 bytes behind the last tensor"),
    "a hole": ([entry("a", 0, 8), entry("b", 12, 16)], 16, "tensor b begins 4 bytes behind what comes before it"),
    "a hole at the beginning": ([entry("a", 4, 8)], 8, "tensor a begins 4 bytes behind"),
    "an overlap": ([entry("a", 0, 8), entry("b", 4, 12)], 12, "tensor b overlaps another one"),
    "twice the same bytes": ([entry("a", 0, 8), entry("b", 0, 8)], 8, "overlaps another one"),
    "an empty tensor inside another": ([entry("a", 0, 8), entry("b", 4, 4)], 8, "tensor b overlaps another one"),
    "too little data": ([entry("a", 0, 8)], 4, "truncated"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_safetensors_as_strict_as_the_library(tmp_path: Path, kind: str) -> None:
    from safetensors import SafetensorError, safe_open

    entries, size, words = PLACES[kind]
    path = tmp_path / "model.safetensors"
    write_header(path, "{" + ", ".join(entries) + "}", bytes(size))
    if words:
        with pytest.raises(SafetensorError):
            safe_open(path, framework="numpy")
        with pytest.raises(CheckpointError, match=words):
            SafetensorsFile(path)
    else:
        with safe_open(path, framework="numpy") as theirs:
            assert set(theirs.keys()) == set(SafetensorsFile(path).tensors)


def test_a_tensor_that_stands_in_the_header_twice(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_header(path, "{" + entry("a", 0, 8) + "," + entry("a", 8, 16) + "}", bytes(16))
    with pytest.raises(CheckpointError, match="a stands in it twice"):
        SafetensorsFile(path)
