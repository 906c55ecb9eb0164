"""What the kernels cost iFairy models: logits and perplexity of ``lut`` and ``dot`` next to ``exact``, on the models' own texts.

    python benchmarks/quality/ifairy.py [CHECKPOINT ...] [--tokens N] [--texts N] [--write docs/ifairy.md]

Without CHECKPOINT the two tiny random models of
tests/helpers/data/ifairy are measured. A text is what the model writes in exact mode at
temperature 1 (seeded), so that its predictions mean something; perplexity is exp(mean loss) over all tokens but the first of each.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from marked import markdown_table, print_or_put

from fairy2i_export import export
from fairy2i_runtime import Model, load

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "helpers" / "data" / "ifairy"
# name of a row -> kernel, options of the export; the last is a yardstick: a change that is next to nothing in other models
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "`lut`": ("lut", {}),
    "`dot`": ("dot", {}),
    "`exact`, cache of float16": ("exact", {"kv_cache": "float16"}),
}
Text = list[int]


def main(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoint directories.", show_default="the tiny ones")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    texts: Annotated[int, typer.Option(help="Texts of each model.")] = 24,
    write: Annotated[Path | None, typer.Option(help="Put the table into this document instead of printing it.")] = None,
) -> None:
    """Measure and print."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = checkpoints or [tiny(Path(folder) / name, name) for name in ("A_mha", "B_gqa")]
        for number, source in enumerate(sources):
            rows += measure(source, Path(folder) / f"model-{number}", tokens, texts)
    headings = ["model", "run with", "logits, relative error", "same most likely token", "perplexity", "exact", "change"]
    print_or_put(write, {"ifairy-kernels": markdown_table(headings, rows, left=2)})


def tiny(folder: Path, name: str) -> Path:
    """A checkpoint of the test data, with a tokenizer of words."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from exporter.synthetic_checkpoint import write_tokenizer

    folder.mkdir()
    shutil.copy(DATA / name / "config.json", folder)
    shutil.copy(DATA / name / "weights.safetensors", folder / "model.safetensors")
    with np.load(DATA / name / "golden.npz") as golden:
        write_tokenizer(folder, golden["logits_fp32_flash"].shape[-1])
    return folder


def measure(source: Path, folder: Path, tokens: int, texts: int) -> list[list[str]]:
    """Rows of the table, for one model."""
    exact = load(export(source, folder).path, kernel="exact")
    written = [write_text(exact, tokens, seed) for seed in range(texts)]
    expected = [exact.logits(text) for text in written]
    rows = []
    for name, (kernel, options) in ROWS.items():
        path = export(source, folder.with_name(f"{folder.name}-other"), **options).path if options else folder
        model = load(path, kernel=kernel)
        found = [model.logits(text) for text in written]
        distance = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(found, expected, strict=True))
        size = sum(float(np.square(b, dtype=np.float64).sum()) for b in expected)
        same = np.mean([np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in zip(found, expected, strict=True)])
        losses = [loss(logits, text) for logits, text in zip(found, written, strict=True)]
        references = [loss(logits, text) for logits, text in zip(expected, written, strict=True)]
        difference = np.concatenate(losses) - np.concatenate(references)
        error = difference.std(ddof=1) / np.sqrt(difference.size)
        rows.append(
            [
                source.name,
                name,
                f"{np.sqrt(distance / size):.2%}",
                f"{same:.1%}",
                f"{np.exp(np.mean(np.concatenate(losses))):.3f}",
                f"{np.exp(np.mean(np.concatenate(references))):.3f}",
                f"{np.expm1(difference.mean()):+.2%} ± {error:.2%}",
            ]
        )
    return rows


def write_text(model: Model, tokens: int, seed: int) -> Text:
    """What a model writes after one token, end-of-text tokens included."""
    start = int(np.random.default_rng(seed).integers(3, model.logits([1]).shape[-1]))
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed, "ignore_eos": True}
    return [start, *model.generate([start], max_new_tokens=tokens - 1, **sampling).token_ids]


def loss(logits: npt.NDArray[np.float32], text: Text) -> npt.NDArray[np.float64]:
    """Nats of every token but the first."""
    wide = logits[:-1].astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    log_probs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return -log_probs[np.arange(len(text) - 1), text[1:]]


if __name__ == "__main__":
    typer.run(main)
