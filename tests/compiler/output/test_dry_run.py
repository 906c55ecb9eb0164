"""--dry-run: what it foretells is what an export then writes, and it writes nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from architecture_helpers import save_tiny
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.export import main
from fairy2i_export.compile.dry_run import PROMPT_TOKENS, dry_run
from fairy2i_export.errors import OptionError, OutputError
from fairy2i_runtime.engine import decoder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": 3, "lm_head": "int4", "embedding": "int8"},
        {"row_multiplier": "rms", "exclude": ("*.up_proj",)},
        {"kv_cache": "int8", "rope_scaling": "linear:2", "context_length": 150},
    ],
)
def test_it_foretells_the_export(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = dry_run(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    report = export(source, tmp_path / "out", **options)
    model = onnx.load(report.path / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = {name: array.nbytes for name, array in tensors.items() if not name.startswith("const/")}
    assert sum(group.count for group in run.groups) == len(stored)
    assert sum(group.total_bytes for group in run.groups) == sum(stored.values())
    gate = next(group for group in run.groups if group.name == "model.layers.*.mlp.gate_proj.packed")
    assert (gate.count, gate.dtype, gate.total_bytes) == (2, "UINT8", 2 * stored["model.layers.1.mlp.gate_proj.packed"])
    assert run.device.weights == (report.path / "model.onnx.data").stat().st_size
    written = sum((report.path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert run.estimate.output_bytes == pytest.approx(written, rel=0.2)


def test_memory_of_a_device(source: Path) -> None:
    assert PROMPT_TOKENS == decoder.PREFILL_CHUNK
    short, long = (dry_run(source, None, context_length=n).device for n in (24, 96))
    assert short.cache == 2 * 2 * 3 * 8 * 4 * 24  # keys and values, layers, heads, head size, float32, tokens
    assert long.cache == 4 * short.cache
    assert long.total == long.weights + long.cache + long.working + long.program
    assert long.working > short.working
    for kind, share in (("float16", 2), ("int8", 4)):
        assert dry_run(source, None, context_length=96, kv_cache=kind).device.cache == long.cache // share
    with pytest.raises(OptionError, match="context length"):
        dry_run(source, None, context_length=97)
    with pytest.raises(OptionError, match="only an int8 cache is calibrated"):
        dry_run(source, None, calibration=source / "text.txt")


@pytest.mark.parametrize("kind", ["phi3", "gemma3_text"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    """Fused matrices; norms of one plus the weight, and two rotary embeddings."""
    source = save_tiny(tmp_path / "model", kind, tie_word_embeddings=kind == "gemma3_text")
    run = dry_run(source, tmp_path / "out")
    report = export(source, tmp_path / "out")
    assert run.device.weights == (report.path / "model.onnx.data").stat().st_size
    model = onnx.load(report.path / "model.onnx")
    stored = {tensor.name for tensor in model.graph.initializer if not tensor.name.startswith("const/")}
    assert sum(group.count for group in run.groups) == len(stored)


def test_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = [str(source), "-o", str(tmp_path / "out"), "--dry-run", "--context-length", "64", "--embedding", "int8"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    tensors = ("model.layers.*.self_attn.q_proj.packed", "model.embed_tokens.int8_scales")
    for words in (*tensors, "keys and values of 64 tokens", "Nothing was written"):
        assert words in out
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "out").mkdir()
    assert main(arguments) == 0  # an empty folder is as good as none
    capsys.readouterr()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(OutputError, match="holds the source"):
        dry_run(source, source, force=True)
