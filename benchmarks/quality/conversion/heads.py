"""What a smaller lm_head costs and brings: perplexity, size and speed of one conversion with its head in several forms.

    python benchmarks/quality/conversion/heads.py CHECKPOINT DIR --work WORK --calibrate TEXT [--calibrate TEXT] \
        --wikitext wikitext2_test.txt --other wizard_of_oz.txt [--rounds 7] [--into docs/quality.md]

DIR is the conversion, with a head of any form; its other layers are taken over (``--codes-from``). Texts are those of texts.py.
Speed is measured in rounds in which every form decodes the same number of tokens, one after the other, so that other programs
disturb all alike; what is told is the ratio of a round to the first form. What was made and measured before is kept in WORK: it may
be called again with ``--rounds`` when the machine is quiet.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.subjects import open_subject
from conversion.texts import CONVERSATIONS, TEXTS, measured, texts_in
from marked import markdown_table, print_or_put

import fairy2i_runtime
from fairy2i_export import export
from fairy2i_runtime.measure.bench_worker import run_once

# name -> options of the export; a head that has stages is chosen on the text
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"lm_head": "int8"},
    "int4": {"lm_head": "int4"},
    **{f"{stages} stages": {"lm_head": "fairy2i", "lm_head_stages": stages} for stages in (4, 3, 2)},
}
PROMPT, NEW = 32, 32  # tokens of a run of which the speed is taken


def made(checkpoint: Path, earlier: Path, form: str, texts: list[Path], tokens: int | None, work: Path) -> Path:
    """The folder with the head in a form, made unless it is there."""
    folder, options = work / form.replace(" ", "-"), FORMS[form]
    if not folder.exists():
        text = {"calibrate": texts, "calibrate_tokens": tokens} if "lm_head_stages" in options else {}
        export(checkpoint, folder, codes_from=earlier, **options, **text)
    return folder


def model_bytes(folder: Path) -> int:
    """Of the graph and its weights."""
    return sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def decode_ratios(folders: dict[str, Path], rounds: int, kernel: str, threads: int | None) -> dict[str, list[float]]:
    """Tokens per second of each round, relative to the first folder's in that round."""
    decoders = {
        name: fairy2i_runtime.load(folder, kernel=kernel, threads=threads).decoder for name, folder in folders.items()
    }
    first = next(iter(folders))
    # which tokens does not matter for the time
    prompt = np.random.default_rng(0).integers(0, decoders[first].vocab, PROMPT).tolist()
    for decoder in decoders.values():
        run_once(decoder, prompt, NEW)  # cold
    seconds = [{name: run_once(decoder, prompt, NEW)["decode"] for name, decoder in decoders.items()} for _ in range(rounds)]
    return {name: [each[first] / each[name] for each in seconds] for name in folders}


def table_of(results: dict[str, dict[str, Any]]) -> list[str]:
    """A row for every form."""
    texts = [name for name in TEXTS if any(name in result["texts"] for result in results.values())]
    rows = []
    for form, result in results.items():
        ratios = result.get("decode", [])
        speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "not measured"
        figures = [f"{result['texts'][name]['perplexity']:.2f}" if name in result["texts"] else "" for name in texts]
        rows.append([form, *figures, f"{result['bytes'] / 1e6:.1f}", speed])
    return markdown_table(["lm_head", *texts, "model MB", "decoded tokens per second, to the first"], rows)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The source.")],
    earlier: Annotated[Path, typer.Argument(metavar="DIR", help="A conversion of it.")],
    work: Annotated[Path, typer.Option(help="For folders and results.")],
    calibrate: Annotated[list[Path], typer.Option(help="Text to choose heads on; may be repeated.")],
    calibrate_tokens: Annotated[int | None, typer.Option(help="Of it, at most.")] = None,
    wikitext: Annotated[Path | None, typer.Option(help="WikiText-2 test text.")] = None,
    other: Annotated[Path | None, typer.Option(help="Text of another kind.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Conversations to measure with.")] = CONVERSATIONS,
    only: Annotated[str, typer.Option(help="Texts.")] = ",".join(TEXTS),
    forms: Annotated[str, typer.Option(help="Forms of the head; ratios are to the first.")] = ",".join(FORMS),
    kernel: Annotated[str, typer.Option(help="To measure with.")] = "lut",
    rounds: Annotated[int, typer.Option(help="Of measuring speed; 0: do not.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Of measuring.")] = None,
    into: Annotated[Path | None, typer.Option(help="Put the table into this document instead of printing it.")] = None,
) -> None:
    """Do what is not done yet, and print."""
    chosen = forms.split(",")
    if unknown := [form for form in chosen if form not in FORMS]:
        raise typer.BadParameter(f"--forms: expected some of {', '.join(FORMS)}, got {', '.join(unknown)}")
    work.mkdir(parents=True, exist_ok=True)
    texts = texts_in(checkpoint, wikitext, other, answers)
    texts = {name: windows for name, windows in texts.items() if name in only.split(",")}
    file = work / "heads.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    folders = {form: made(checkpoint, earlier, form, calibrate, calibrate_tokens, work) for form in chosen}
    for form, folder in folders.items():
        result = results.setdefault(form, {"texts": {}})
        result["bytes"] = model_bytes(folder)
        missing = {name: windows for name, windows in texts.items() if name not in result["texts"]}
        if missing:
            result["texts"] |= measured(open_subject(folder, kernel, threads), missing)
        shown = ", ".join(f"{name} {figure['perplexity']:.3f}" for name, figure in result["texts"].items())
        print(f"{form}: {shown}; {result['bytes'] / 1e6:.1f} MB", flush=True)
        file.write_text(json.dumps(results, indent=1))
    if rounds:
        for form, ratios in decode_ratios(folders, rounds, kernel, threads).items():
            results[form]["decode"] = ratios
        file.write_text(json.dumps(results, indent=1))
    print_or_put(into, {"conversion-heads": table_of({form: results[form] for form in chosen})})


if __name__ == "__main__":
    typer.run(main)
