"""GGUF files of a LLaMA checkpoint for end_to_end.py, in the types of llama.cpp, by the quantizer of llama-cpp-python.

    python benchmarks/peers/gguf_files.py CHECKPOINT TARGET [--type TQ2_0 ...] [--python PYTHON]

Blocks of the small types hold 256 weights. Of a model whose sizes are no multiples of that there are two files per type:
``TQ2_0.gguf`` as llama-quantize makes it, where tensors that do not fit get another type (Q4_0 in place of TQ2_0), and
``TQ2_0-padded.gguf`` of the model padded with zeros, in which every tensor has the type, and more weights than it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "quality"))

from conversion.rivals.padded import BLOCK, write_gguf

from fairy2i_runtime.commands.console import new_app, run_app
from linear.sweep import BenchmarkError
from peers.contest import check_python
from peers.stored import gguf

TYPES = ("TQ2_0", "Q2_K", "IQ2_XXS", "Q4_0", "Q4_K_M")
SMALL_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16")  # of 32 weights: nothing to pad for

app = new_app(__doc__ or "")


def needs_padding(config: dict[str, Any]) -> bool:
    """Whether a row of some weight matrix is no whole number of blocks."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rows = (config["hidden_size"], config["intermediate_size"], head * config["num_attention_heads"])
    return any(size % BLOCK for size in rows)


@app.command()
def make(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a LLaMA checkpoint (safetensors).")],
    target: Annotated[Path, typer.Argument(help="Folder for the files; those that are there are kept.")],
    kinds: Annotated[list[str] | None, typer.Option("--type", help=f"Type; repeatable; default {' '.join(TYPES)}.")] = None,
    python: Annotated[Path, typer.Option(help="Python with llama-cpp-python; default: this one.")] = Path(sys.executable),
) -> None:
    """Write the files and say what is in them."""
    config_file = checkpoint / "config.json"
    if not config_file.is_file():
        raise BenchmarkError(f"{checkpoint}: expected a checkpoint, found no config.json")
    check_python(python)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for block, mark in ((1, ""), (BLOCK, "-padded")):
        if mark and not needs_padding(config):
            continue
        wanted = [kind for kind in kinds or TYPES if not (mark and kind in SMALL_BLOCKS)]
        paths = {kind: target / f"{kind}{mark}.gguf" for kind in wanted}
        missing = [kind for kind, path in paths.items() if not path.exists()]
        if missing:
            float16 = target / f"F16{mark}.unfinished"
            write_gguf(checkpoint, float16, block, tokenizer=False)
            for kind in missing:
                quantize(float16, paths[kind], kind, python)
            float16.unlink()
        for kind in wanted:
            found = gguf(paths[kind])
            size = f"{found['bytes'] / 1e6:.1f} MB, {found['bits']:.2f} bits per weight of the layers"
            parts = [size, found["layers"], f"output layer {found['head']}", found["note"]]
            print(f"{paths[kind].name}: {'; '.join(filter(None, parts))}", flush=True)


def quantize(source: Path, target: Path, kind: str, python: Path) -> None:
    """Quantize one file.

    Raises:
        BenchmarkError: llama.cpp does not do it.
    """
    from gguf import GGUFReader

    columns = {tensor.name: int(tensor.shape[0]) for tensor in GGUFReader(source).tensors if len(tensor.shape) == 2}
    unfinished = target.with_suffix(".unfinished")
    command = [python, Path(__file__).with_name("llama_quantize.py"), source, unfinished, kind]
    done = subprocess.run(list(map(str, command)), input=json.dumps(columns), capture_output=True, text=True, check=False)
    if done.returncode or not unfinished.is_file():
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BenchmarkError(f"{target}: llama.cpp does not make it: {last}")
    unfinished.replace(target)


if __name__ == "__main__":
    sys.exit(run_app(app, "gguf_files", None, (BenchmarkError,)))
