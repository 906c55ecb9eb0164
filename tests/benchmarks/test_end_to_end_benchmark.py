"""The comparison of whole models: what it writes, a run of the embedded model, and how it fails. Nothing here asserts a time."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest

from conftest import ROOT
from fairy2i_export import export
from runtime_models import CHECKPOINT, stories_folder

sys.path.insert(0, str(ROOT / "benchmarks"))

import end_to_end
import report
from decoding import other_nodes
from peers import contest, stored, tables

SHORT = ["--prompt-tokens", "5", "--new-tokens", "3", "--long-prompt", "9", "--rounds", "2", "--threads", "1"]
LENGTHS = {"short": 64, "new": 64, "long": 512}


def record(name: str, decode: list[float], *, threads: int = 1, layers: str = "TQ2_0: all", **worker: Any) -> dict[str, Any]:
    """A record whose three measures took the same seconds."""
    return {
        "name": name, "threads": threads, "lengths": LENGTHS, "seconds": dict.fromkeys(("decode", "first", "prompt"), decode),
        "resident_bytes": 150_000_000, "idle_processor_seconds": 0.002, "machine": "a machine",
        "worker": {"runs": "lut avx512", **worker},
        "stored": {"layers": layers, "bits": 2.0625, "head": "Q6_K", "bytes": 80_000_000, "note": ""},
    }  # fmt: skip


def records() -> list[dict[str, Any]]:
    peer = {"runs": "llama-cpp-python 1", "features": ["AVX2", "FMA"], "buffers": {"CPU": 70.0, "CPU_REPACK": 30.4}}
    return [
        record("TQ2_0", [0.5, 1.0, 4.0], **peer),
        record("2-stages lut", [0.25, 0.8, 1.0], layers="Fairy2i, 2 stages"),
    ]


def test_ratios_are_of_rounds() -> None:
    """The median of the ratios 2, 1.25 and 4, not the ratio of the medians, which is 1.25."""
    base, ours = records()
    assert tables.ratio(ours, base, "decode") == "2.00 (1.62 to 3.00)"
    assert tables.ratio(base, base, "decode") == "1.00 (1.00 to 1.00)"


def test_tables_by_hand() -> None:
    base, ours = records()
    lines = tables.markdown([base, ours, {**base, "threads": 2}]).splitlines()
    assert lines[0] == (
        "Machine: a machine. llama-cpp-python 1, compiled with AVX2, FMA. Rounds: 3. Between its turns no process took more than "
        "2 ms of a processor."
    )
    assert "| **2-stages lut** | Fairy2i, 2 stages | 2.06 | Q6_K | 80 | 150 |  | lut avx512 |" in lines
    assert "| TQ2_0 | TQ2_0: all | 2.06 | Q6_K | 80 | 150 | 150 | 30 MiB repacked |" in lines
    at = lines.index("**decoding, 64 tokens after 64, 1 thread**")
    assert lines[at + 2] == "| engine | tokens/s | spread | times as fast as TQ2_0 |"  # nobody measured Q4_0
    assert lines[at + 4 : at + 6] == [  # fastest first
        "| **2-stages lut** | 78.8 | 120 % | 2.00 (1.62 to 3.00) |",
        "| TQ2_0 | 63.0 | 88 % | 1.00 (1.00 to 1.00) |",
    ]
    assert "**first token after a prompt of 64, 2 threads**" in lines
    assert "| TQ2_0 | 1000.0 | 175 % | 1.00 (1.00 to 1.00) |" in lines  # milliseconds


def test_types_of_a_gguf_file(tmp_path: Path) -> None:
    """A part that has a type in some layers only is counted; norms and the embedding are no layers."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_description("padded with zeros: width 3 to 32")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    for layer in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            wide = part == "ffn_down" and layer == 1
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.zeros((8, 32), np.float32 if wide else np.float16))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = stored.gguf(path)
    assert found["layers"] == "F16: q, k, v, output, gate, up, down (1 of 2); F32: down (1 of 2)"
    assert found["bits"] == pytest.approx((13 * 16 + 32) / 14)
    assert (found["head"], found["note"]) == ("F16", "padded with zeros: width 3 to 32")


def test_a_run_of_the_embedded_model(tmp_path: Path) -> None:
    file, page = tmp_path / "results.json", tmp_path / "page.md"
    marks = report.BEGIN.format(" x"), report.END.format(" x")
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    command = [str(stories_folder()), *SHORT, "--json", str(file), "--into", str(page), "--section", "x"]
    assert end_to_end.main([*command, "--baseline", "stories lut"]) == 0
    found = json.loads(file.read_text())
    assert [each["name"] for each in found] == ["stories lut", "stories auto"]
    for each in found:
        assert set(each["seconds"]) == {"decode", "first", "prompt"}
        assert all(len(values) == 2 and min(values) > 0 for values in each["seconds"].values())
        assert each["resident_bytes"] > 20e6
        assert each["worker"]["vocab"] == 512
        assert each["stored"]["layers"] == "Fairy2i, 2 stages"
    assert found[0]["worker"]["runs"].startswith("lut ")
    text = page.read_text()
    assert "old" not in text
    assert "**decoding, 3 tokens after 5, 1 thread**" in text
    assert "times as fast as stories lut" in text
    before = page.read_text()
    assert end_to_end.main(["--records", str(file), "--baseline", "stories lut", "--into", str(page), "--section", "x"]) == 0
    assert page.read_text() == before


def test_onnxruntime_genai_runs_beside(tmp_path: Path) -> None:
    """A folder of standard operators, which it reads as those of its own model builder."""
    pytest.importorskip("onnxruntime_genai")
    export(CHECKPOINT, tmp_path / "stock", backend="matmulnbits")
    file = tmp_path / "results.json"
    command = [str(stories_folder()), "--kernel", "lut", "--genai", str(tmp_path / "stock"), *SHORT, "--json", str(file)]
    assert end_to_end.main(command) == 0
    ours, other = json.loads(file.read_text())
    assert (ours["name"], other["name"]) == ("stories lut", "stock")
    assert other["worker"]["runs"].startswith("onnxruntime-genai ")
    assert other["stored"]["layers"] == "MatMulNBits, 2 bits, blocks of 128"
    assert all(min(values) > 0 for values in other["seconds"].values())


def test_a_worker_says_what_is_wrong(tmp_path: Path) -> None:
    """An error of the model, and a process that ends: one line each."""
    contestant = contest.fairy2i(stories_folder(), "fastest")
    with pytest.raises(end_to_end.BenchmarkError, match=r"stories fastest: .*fastest"):
        contest.Worker(contestant, 1, 16)
    ended = contest.Contestant("gone", (sys.executable, "-c", "raise SystemExit('no reason')"), tmp_path, "llama")
    with pytest.raises(end_to_end.BenchmarkError, match="gone: its process ended with code 1: no reason"):
        contest.Worker(ended, 1, 16)


def test_wrong_arguments_get_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, file, empty = str(stories_folder()), tmp_path / "x.gguf", tmp_path / "python"
    file.write_bytes(b"GGUF")
    empty.write_text("#!/bin/sh\necho no module named llama_cpp >&2\nexit 1\n")
    empty.chmod(0o755)
    wrong = {
        "MODEL folders to measure or --records": [folder, "--records", str(file)],
        "does not exist": [str(tmp_path / "nothing")],
        "(512)": [folder, "--long-prompt", "600"],
        "--prompt-tokens": [folder, "--prompt-tokens", "0"],
        "expected a GGUF file": [folder, *SHORT, "--gguf", str(tmp_path / "nothing.gguf")],
        "folder of them": [folder, *SHORT, "--gguf", folder],
        "pip install llama-cpp-python": [folder, *SHORT, "--gguf", str(file), "--python", str(empty)],
        "cannot start it": [folder, *SHORT, "--gguf", str(file), "--python", str(tmp_path / "nothing")],
        "--genai": [folder, *SHORT, "--genai", str(tmp_path)],
        "rename": [folder, *SHORT, "--kernel", "lut", "--kernel", "lut"],
        "records of end_to_end.py": ["--records", str(file)],
        "cannot write": [folder, *SHORT, "--json", str(tmp_path / "nowhere" / "x.json")],
        "No such file": [folder, *SHORT, "--into", str(tmp_path / "page.md")],
        "has no lines": [folder, *SHORT, "--into", str(file)],
    }
    for expected, arguments in wrong.items():
        assert end_to_end.main(arguments) == 2, arguments
        said = capfd.readouterr().err.strip().splitlines()
        assert len(said) == 1, said
        assert expected in said[0]


def test_a_model_without_its_layers_runs(tmp_path: Path) -> None:
    """Every layer is replaced, those of joint nodes and the output layer too, and what is left runs."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- other-nodes -->\n<!-- /other-nodes -->\nbehind\n")
    other_nodes.main(stories_folder(), "lut", [1], 4, 1, page)
    found = page.read_text()
    assert re.search(r"\| 1 \| \d+\.\d\d \| \d+\.\d\d \| -?\d+\.\d\d \| \d+ % \|", found)
    assert found.startswith("before\n")
    assert found.endswith("\nbehind\n")
    model = onnx.load(stories_folder() / "model.onnx", load_external_data=False)
    kept = [node.op_type for node in model.graph.node if not node.op_type.startswith("Fairy2iMatMul")]
    before = len(model.graph.node)
    assert other_nodes.without_layers(model) == before - len(kept) > 0
    assert [n.op_type for n in model.graph.node if n.op_type not in ("Slice", "Concat", "Expand")] == [
        op for op in kept if op not in ("Slice", "Concat", "Expand")
    ]
