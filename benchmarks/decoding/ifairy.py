"""An iFairy model of a published shape: size, loading, speed and memory, next to a float LLaMA of the same configuration.

    python benchmarks/decoding/ifairy.py WORK [--shape 700M|1.3B|tiny] [--threads 1,2] [--repeat N] [--json FILE] \
        [--write docs/ifairy.md]

Writes random checkpoints (seeded, bfloat16, real tensor names) into WORK, exports them, runs ``fairy2i bench`` on each result and
removes everything it wrote, one model after the other: 700M needs 5 GB of disk. Speed does not depend on the values. The float
model is what the method's authors compare with: a LLaMA of the same hidden size, layers and heads, here in float32 matrices
(``--backend dense``). Give figures together with the machine, and compare only what one call measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporter.synthetic_checkpoint import Shape, llama_config, write_checkpoint, write_tensors
from fairy2i_export import export
from quality.marked import markdown_table, print_or_put

SHAPES: dict[str, dict[str, int]] = {
    "700M": {"layers": 24, "hidden": 1536, "inner": 4096, "heads": 16, "vocab": 32000},
    "1.3B": {"layers": 24, "hidden": 2048, "inner": 5460, "heads": 32, "vocab": 32000},
    "tiny": {"layers": 2, "hidden": 64, "inner": 84, "heads": 4, "vocab": 97},
}
# name of a row -> whether it is the float model, options of the export
ROWS: dict[str, tuple[bool, dict[str, Any]]] = {
    "iFairy, lm_head float": (False, {}),
    "iFairy, lm_head and embedding int8": (False, {"lm_head": "int8", "embedding": "int8"}),
    "float LLaMA": (True, {"backend": "dense", "lm_head": "float", "trained": True}),
}


def main(
    work: Annotated[Path, typer.Argument(help="Directory on a disk with room for a model and its export.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "700M",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    new: Annotated[int, typer.Option(help="Tokens to decode.")] = 64,
    repeat: Annotated[int, typer.Option(help="Runs of each.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the table into this document instead of printing it.")] = None,
) -> None:
    """Measure and print."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"--shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    config = llama_config(**SHAPES[shape])
    results: dict[str, Any] = {}
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ifairy-", dir=work) as folder:
        for is_float in (False, True):
            source = Path(folder) / "source"
            if is_float:
                write_checkpoint(source, config)
            else:
                write_ifairy(source, config)
            for name, (wants_float, options) in ROWS.items():
                if wants_float == is_float:
                    results[name] = measure(source, Path(folder) / "model", options, threads, [prompt, new, repeat])
            shutil.rmtree(source)
    if json_file is not None:
        json_file.write_text(json.dumps({"shape": shape, "results": results}, indent=1))
    print_or_put(write, {"ifairy-speed": table(shape, results, prompt, repeat)})


def write_ifairy(directory: Path, config: dict[str, Any], seed: int = 0) -> None:
    """Write a random checkpoint as the released code saves it; sizes as those of a LLaMA's config.json."""
    own = {
        "architectures": ["ComplexNetLM"],
        "model_type": "complexnet",
        "hidden_act": "relu2",
        "max_position_embeddings": 2048,
    }
    write_tensors(directory, {**config, **own}, dict(tensor_shapes(config)), seed)


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of all tensors of a ComplexNetLM."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, Shape] = {"token_embeddings_{}.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"layer.{layer}.self_attn", f"layer.{layer}.mlp"
        outs = {"q": hidden, "k": keys, "v": keys, "o": hidden}
        shapes |= {f"{attention}.{name}_proj.weight_{{}}": (out, hidden) for name, out in outs.items()}
        shapes |= {f"{mlp}.{name}_proj.weight_{{}}": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{mlp}.down_proj.weight_{{}}"] = (hidden, inner)
        shapes |= {f"layer.{layer}.{norm}.weight_{{}}": (hidden,) for norm in ("pre_layernorm", "post_layernorm")}
        shapes[f"{attention}.attn_layernorm.weight_{{}}"] = (hidden,)
        shapes[f"{mlp}.ffn_layernorm.weight_{{}}"] = (inner,)
    shapes["final_norm.weight_{}"] = (hidden,)
    for name, shape in shapes.items():
        yield name.format("real"), shape
        yield name.format("imag"), shape
    yield "lm_head.weight", (vocab, 2 * hidden)


def measure(source: Path, out: Path, options: dict[str, Any], threads: str, run: list[int]) -> dict[str, Any]:
    """Export, measure and remove the result."""
    report = export(source, out, **options)
    try:
        found: dict[str, Any] = {"bytes": report.output_bytes, "layer_bytes": report.weight_bytes, "seconds": report.seconds}
        for count in threads.split(","):
            arguments = [
                "--threads",
                count,
                "--prompt-tokens",
                str(run[0]),
                "--new-tokens",
                str(run[1]),
                "--repeat",
                str(run[2]),
            ]
            command = [sys.executable, "-m", "fairy2i_runtime", "bench", str(out), "--json", *arguments]
            found[count] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found
    finally:
        shutil.rmtree(out)


def table(shape: str, results: dict[str, Any], prompt: int, repeat: int) -> list[str]:
    """The figures as Markdown."""
    first = next(iter(results.values()))
    threads = [key for key in first if key.isdecimal()]
    headings = ["model", "folder, MB", "load, s", "peak memory, MB"]
    headings += [f"{what}, {count} thread{'s' * (count != '1')}" for count in threads for what in ("prompt", "decode")]
    rows = []
    for name, found in results.items():
        last = found[threads[-1]]
        cells = [
            name,
            f"{found['bytes'] / 1e6:,.0f}",
            f"{last['load_seconds']:.2f}",
            f"{last['memory_bytes']['peak'] / 1e6:,.0f}",
        ]
        for count in threads:
            for key in ("prompt_tokens_per_second", "decode_tokens_per_second"):
                cells.append(f"{found[count][key]['mean']:.1f} ± {found[count][key]['standard_deviation'] or 0:.1f}")
        rows.append(cells)
    machine = first[threads[0]]["machine"]
    return [
        f"Shape {shape}, random weights; prompt of {prompt} tokens, tokens per second ± standard deviation of {repeat} runs; "
        f"{machine['processor']}, {machine['logical_processors']} processors, {', '.join(machine['cpu_features'])}.",
        "",
        *markdown_table(headings, rows),
    ]


if __name__ == "__main__":
    typer.run(main)
