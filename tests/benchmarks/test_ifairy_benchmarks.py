"""The benchmarks about iFairy models run and write what they promise. Nothing here asserts a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from fairy2i_export.source.checkpoint import open_checkpoint
from ifairy_models import DATA

PLACES = "<!-- ifairy-speed -->\n<!-- /ifairy-speed -->\n<!-- ifairy-kernels -->\n<!-- /ifairy-kernels -->\n"


def run(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *arguments], check=True, cwd=ROOT)


def test_speed_of_a_tiny_model(tmp_path: Path) -> None:
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(PLACES)
    size = ["--shape", "tiny", "--threads", "1", "--prompt", "8", "--new", "4", "--repeat", "2"]
    run("decoding/ifairy.py", str(tmp_path), *size, "--json", str(figures), "--write", str(page))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "page.md"]
    results = json.loads(figures.read_text())["results"]
    assert len(results) == 3
    assert all(found["1"]["decode_tokens_per_second"]["mean"] > 0 for found in results.values())
    assert "| float LLaMA |" in page.read_text()


def test_kernels_on_the_tiny_models(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PLACES)
    run("quality/ifairy.py", "--tokens", "24", "--texts", "2", "--write", str(page))
    for model in ("A_mha", "B_gqa"):
        for kernel in ("lut", "dot"):
            assert f"| {model} | `{kernel}` |" in page.read_text()


def test_synthetic_checkpoints_have_the_tensors_of_the_released_code(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from decoding import ifairy
    from exporter.synthetic_checkpoint import llama_config

    config = llama_config(**ifairy.SHAPES["tiny"], kv_heads=2)
    ifairy.write_ifairy(tmp_path / "model", config)
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "model.safetensors").write_bytes((DATA / "B_gqa" / "weights.safetensors").read_bytes())
    (tmp_path / "golden" / "config.json").write_text((DATA / "B_gqa" / "config.json").read_text())
    shapes = []
    for name in ("model", "golden"):
        opened = open_checkpoint(tmp_path / name)
        shapes.append({tensor: opened.info(tensor).shape for tensor in opened.owners})
    assert shapes[0] == shapes[1]
    # as the released checkpoints have them
    for shape, parameters in (("700M", 1_555_983_360), ("1.3B", 2_678_230_976)):
        sizes = [math.prod(size) for _, size in ifairy.tensor_shapes(llama_config(**ifairy.SHAPES[shape]))]
        assert (len(sizes), sum(sizes)) == (533, parameters)
