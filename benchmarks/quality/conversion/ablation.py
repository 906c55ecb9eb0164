"""Convert a model in many ways and measure each: what every stage, bit and sample of text is worth, and what it costs.

    python benchmarks/quality/conversion/ablation.py CHECKPOINT --work WORK --prose wikitext2_valid.txt --conversations 48 \
        --wikitext wikitext2_test.txt --other wizard_of_oz.txt [--only 2,3,2-no-rotation] [--group bits] [--samples 3]
    python benchmarks/quality/conversion/reports.py WORK --into docs/quality.md

The cases are those of grid.py. Each is converted by the command line in a process of its own (wall and processor seconds,
peak memory), then measured on the texts of texts.py by every kernel, and leaves a JSON file in WORK; the same command goes
on where it was interrupted. The folders are kept with --keep. The float model is measured, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.grid import CASES, Case
from conversion.samples import sample_texts
from conversion.subjects import FLOAT, open_subject
from conversion.texts import CONVERSATIONS, measured, texts_in

from exporter.conversions import convert
from fairy2i_runtime.measure.perplexity import Windows

_INSPECT = "import sys; from fairy2i_export.commands.tools import main; sys.exit(main())"


def sizes(folder: Path) -> dict[str, float]:
    """Bits per weight of the converted layers, and bytes of the model's files."""
    shown = subprocess.run(
        [sys.executable, "-P", "-c", _INSPECT, "inspect", str(folder), "--json"], stdout=subprocess.PIPE, check=True
    )
    bits = json.loads(shown.stdout)["totals"]["bits_per_weight"]
    return {"bits": bits, "model_bytes": sum(path.stat().st_size for path in folder.glob("model.onnx*"))}


def write_json(path: Path, value: Any) -> None:
    """As a whole: an interruption leaves no half file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def one_run(
    case: Case, checkpoint: Path, texts: list[Path], sample: int, extra: list[str], folder: Path, evaluated: dict[str, Windows],
    kernels: list[str], threads: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Convert and measure; with what was done before, if a folder of an interrupted run is there with its note."""
    note = folder.with_name(folder.name + ".converted")
    if note.exists() and (folder / "model.onnx").exists():
        cost = json.loads(note.read_text())
    else:
        given = [word for text in texts for word in ("--calibrate", text)]
        cost = convert([checkpoint, "-o", folder, *given, *case.arguments, *extra, "--force"])
        write_json(note, cost)
    by_kernel = {kernel: measured(open_subject(folder, kernel, threads), evaluated) for kernel in kernels}
    named = {"case": case.name, "label": case.label, "group": case.group, "sample": sample}
    return {**named, "arguments": [*case.arguments, *extra], **cost, **sizes(folder), "kernels": by_kernel}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="What is converted.")],
    work: Annotated[Path, typer.Option(help="For texts, folders and results.")],
    prose: Annotated[list[Path] | None, typer.Option(help="Text to convert with; may be repeated.")] = None,
    conversations: Annotated[int, typer.Option(help="Of 256 tokens, that the model writes to be converted with.")] = 0,
    samples: Annotated[int, typer.Option(help="Of the text, for the cases that are made of all.")] = 3,
    wikitext: Annotated[Path | None, typer.Option(help="WikiText-2 test text.")] = None,
    other: Annotated[Path | None, typer.Option(help="Text of another kind.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Conversations to measure with.")] = CONVERSATIONS,
    kernels: Annotated[str, typer.Option(help="Kernels to measure with.")] = "exact,lut",
    only: Annotated[str | None, typer.Option(help="Names of cases; default: all.")] = None,
    group: Annotated[str | None, typer.Option(help="Cases of this table only: bits or ablation.")] = None,
    extra: Annotated[list[str] | None, typer.Option(help="A further option of fairy2i-export, as --extra=--jobs=1.")] = None,
    keep: Annotated[bool, typer.Option(help="Keep the folders.")] = False,
    threads: Annotated[int | None, typer.Option(help="Of measuring.")] = None,
) -> None:
    """Do what is not done yet."""
    unknown = set(only.split(",") if only else ()) - {case.name for case in CASES}
    if unknown:
        raise typer.BadParameter(
            f"--only: expected some of {', '.join(case.name for case in CASES)}, got {', '.join(unknown)}"
        )
    if not prose and not conversations:
        raise typer.BadParameter("expected a text to convert with: --prose, --conversations, or both")
    work.mkdir(parents=True, exist_ok=True)
    evaluated = texts_in(checkpoint, wikitext, other, answers)
    if not (work / "float.json").exists():
        write_json(
            work / "float.json", {"case": FLOAT, "texts": measured(open_subject(checkpoint, threads=threads), evaluated)}
        )
    chosen = [
        case for case in CASES if (not only or case.name in only.split(",")) and (group is None or case.group == group)
    ]
    for sample in range(samples):
        for case in chosen:
            result = work / f"{case.name}-{sample}.json"
            if result.exists() or (sample and not case.all_samples):
                continue
            texts = sample_texts(checkpoint, prose or [], sample, samples, conversations, work)
            folder = work / f"{case.name}-{sample}"
            found = one_run(case, checkpoint, texts, sample, extra or [], folder, evaluated, kernels.split(","), threads)
            write_json(result, found)
            figures = next(iter(found["kernels"].values()))
            shown = ", ".join(f"{name} {figure['perplexity']:.2f}" for name, figure in figures.items())
            print(f"{case.name}, sample {sample}: {shown}; {found['processor_seconds']:.0f} s of processor time", flush=True)
            if not keep:
                shutil.rmtree(folder)
                folder.with_name(folder.name + ".converted").unlink()


if __name__ == "__main__":
    typer.run(main)
