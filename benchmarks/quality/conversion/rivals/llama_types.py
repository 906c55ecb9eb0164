"""Perplexity of llama.cpp's types on the texts and by the protocol of texts.py, quantized with an importance matrix.

    python benchmarks/quality/conversion/rivals/llama_types.py CHECKPOINT --llama-cpp DIR --work WORK --calibrate TEXT... \
        --wikitext wikitext2_test.txt --other wizard_of_oz.txt [--types F16,IQ2_XXS,...] [--pure]

DIR is what build.py made. The importance matrix is llama-imatrix's, of the windows that ``fairy2i-export --calibrate TEXT``
would read. Embedding and output layer are Q8_0 for every type, as the exporter's lm_head is int8; ``--pure`` gives all
linear layers the same type, without it llama-quantize mixes types as it does for everybody. Sizes that are no multiples of
256 are padded (padded.py). F16 is the model before quantization: its figures say that nothing but the type makes the
difference. Every type leaves a JSON file in WORK, and is not measured again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from conversion.rivals.build import binding_paths, library_folder, tool
from conversion.rivals.padded import bits_per_weight, write_gguf
from conversion.texts import CONVERSATIONS, TEXTS, texts_in
from marked import markdown_table

from fairy2i_export.compile.calibrate.text import read_texts
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime.measure.perplexity import Windows, measure
from fairy2i_runtime.measure.scoring import F64, token_log_probs
from fairy2i_runtime.text.tokenizer import Tokenizer

TYPES = "F16,IQ2_XXS,IQ2_XS,IQ2_S,IQ2_M,Q2_K,IQ3_XXS,Q3_K_S,Q4_0,Q4_K_M"
KEPT = "q8_0"  # embedding and output layer


def scorer(gguf: Path, llama_cpp: Path, context: int, threads: int) -> Any:
    """A scorer, as fairy2i_runtime.measure.perplexity has them, that runs a GGUF file."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library_folder(llama_cpp.resolve()))
    sys.path[:0] = [str(path.resolve()) for path in binding_paths(llama_cpp) if str(path.resolve()) not in sys.path]
    from llama_cpp import Llama

    model = Llama(
        str(gguf), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
    )

    def score(ids: Sequence[int]) -> F64:
        model.reset()
        model.eval(list(ids[:-1]))
        return token_log_probs(model.scores[: len(ids) - 1], np.asarray(ids[1:]))

    return score


def importance_matrix(
    checkpoint: Path, f16: Path, llama_cpp: Path, texts: list[Path], tokens: int | None, work: Path, threads: int
) -> Path:
    """Made once: of the text that a calibration reads."""
    target = work / "imatrix.dat"
    if not target.exists():
        ids = read_texts(open_checkpoint(checkpoint), texts, tokens, 1 << 20).ids
        text = work / "calibration.txt"
        decode = Tokenizer.load(checkpoint).decode
        # special tokens are left out: this llama-imatrix would read them as plain text
        text.write_text("".join(decode(row.tolist()) for row in ids), encoding="utf-8")
        unfinished = target.with_suffix(".partial")
        command = [
            tool(llama_cpp, "llama-imatrix"),
            "-m",
            f16,
            "-f",
            text,
            "-o",
            unfinished,
            "-c",
            ids.shape[1],
            "-t",
            threads,
        ]
        with (work / "imatrix.log").open("w") as log:
            subprocess.run([*map(str, command), "--no-ppl"], check=True, stdout=log, stderr=subprocess.STDOUT)
        unfinished.replace(target)
    return target


def main(
    checkpoint: Annotated[Path, typer.Argument(help="LLaMA checkpoint.")],
    llama_cpp: Annotated[Path, typer.Option(help="What build.py made.")],
    work: Annotated[Path, typer.Option(help="For GGUF files and results.")],
    calibrate: Annotated[list[Path], typer.Option(help="Text of the importance matrix; may be repeated.")],
    calibrate_tokens: Annotated[int | None, typer.Option(help="As for fairy2i-export.")] = None,
    wikitext: Annotated[Path | None, typer.Option(help="WikiText-2 test text.")] = None,
    other: Annotated[Path | None, typer.Option(help="Text of another kind.")] = None,
    conversations: Annotated[Path | None, typer.Option(help="Conversations that the float model wrote.")] = CONVERSATIONS,
    only: Annotated[str, typer.Option(help="Texts to measure now; the others can follow.")] = ",".join(TEXTS),
    types: Annotated[str, typer.Option(help="llama.cpp's names of types.")] = TYPES,
    pure: Annotated[bool, typer.Option(help="One type for all linear layers.")] = False,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
) -> None:
    """Quantize, measure, print."""
    work.mkdir(parents=True, exist_ok=True)
    texts = texts_in(checkpoint, wikitext, other, conversations)
    texts = {name: windows for name, windows in texts.items() if name in only.split(",")}
    f16 = work / "f16.gguf"
    if not f16.exists():
        unfinished = work / "f16.partial"
        write_gguf(checkpoint, unfinished)
        unfinished.replace(f16)
    matrix = importance_matrix(checkpoint, f16, llama_cpp, calibrate, calibrate_tokens, work, threads)
    results = [one_type(name, pure, checkpoint, f16, matrix, llama_cpp, texts, work, threads) for name in types.split(",")]
    print("\n".join(table_of(results)))


def one_type(
    name: str,
    pure: bool,
    checkpoint: Path,
    f16: Path,
    matrix: Path,
    llama_cpp: Path,
    texts: dict[str, Windows],
    work: Path,
    threads: int,
) -> dict[str, Any]:
    """Figures of a type on those texts that it was not measured on yet, with those that it was."""
    path = work / f"{name}{'-pure' if pure and name != 'F16' else ''}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"type": name, "pure": pure, "texts": {}}
    missing = {text: windows for text, windows in texts.items() if text not in found["texts"]}
    if missing:
        gguf = f16 if name == "F16" else work / f"{name}.gguf"
        if name != "F16":
            options = [
                "--imatrix",
                matrix,
                "--output-tensor-type",
                KEPT,
                "--token-embedding-type",
                KEPT,
                *(["--pure"] if pure else []),
            ]
            command = [tool(llama_cpp, "llama-quantize"), *options, f16, gguf, name, threads]
            with (work / f"{name}.log").open("w") as log:
                subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=subprocess.STDOUT)
        found["bits"] = bits_per_weight(gguf, checkpoint)
        score = scorer(gguf, llama_cpp, max(windows.window for windows in texts.values()), threads)
        for text, windows in missing.items():
            began = time.perf_counter()
            figure = measure(windows, score)
            found["texts"][text] = {"perplexity": figure.perplexity, "loss_error": figure.loss_error}
            found["texts"][text]["seconds"] = time.perf_counter() - began
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{name}, {found['bits']:.2f} bits: {text} {figure.perplexity:.3f}", flush=True)
        if name != "F16":
            gguf.unlink()
    return found


def table_of(results: list[dict[str, Any]]) -> list[str]:
    """A row per type."""
    names = [name for name in TEXTS if any(name in result["texts"] for result in results)]
    rows = [
        [
            result["type"] + (", pure" if result["pure"] and result["type"] != "F16" else ""),
            f"{result['bits']:.2f}",
            *(f"{result['texts'][name]['perplexity']:.2f}" if name in result["texts"] else "" for name in names),
        ]
        for result in results
    ]
    return markdown_table(["type", "bits per weight", *names], rows)


if __name__ == "__main__":
    typer.run(main)
