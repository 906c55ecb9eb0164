"""Whole models, from token ids to token ids: exported folders in the runtime beside llama.cpp, in one interleaved run.

Method and results: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fairy2i_runtime.commands.console import new_app, run_app
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.folder import open_folder
from linear.measure import machine
from linear.sweep import BenchmarkError
from peers import contest, stored, tables
from report import around, insert

KERNELS = ["lut", "auto"]
THREADS = [1, 2]

app = new_app(__doc__ or "")


@app.command()
def run(
    model: Annotated[list[Path] | None, typer.Argument(help="Model folders, as fairy2i-export writes them.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Kernel family; repeatable; default lut auto.")] = None,
    gguf: Annotated[
        list[Path] | None, typer.Option(help="GGUF file, or folder of such (peers/gguf_files.py makes one); repeatable.")
    ] = None,
    genai: Annotated[
        list[Path] | None, typer.Option(help="Folder that onnxruntime-genai's model builder wrote; repeatable.")
    ] = None,
    python: Annotated[Path, typer.Option(help="Python with llama-cpp-python; default: this one.")] = Path(sys.executable),
    threads: Annotated[list[int] | None, typer.Option(help="Of an engine; repeatable; default 1 2.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Timed turns of each engine.", min=1)] = 7,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt before the tokens that are generated.", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate after it.", min=2)] = 64,
    long_prompt: Annotated[int, typer.Option(help="Prompt that is only read.", min=1)] = 512,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Engine to give ratios to; repeatable; default TQ2_0 Q4_0.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records here.")] = None,
    records_file: Annotated[
        Path | None, typer.Option("--records", help="Measure nothing: make tables of what --json wrote.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Put the tables into this page instead of printing them.")] = None,
    section: Annotated[str, typer.Option(help="Those of this name: a page may hold several results.")] = "",
) -> None:
    """Time them by turns. Run it on an otherwise idle machine."""
    if (records_file is None) == (not model):
        raise BenchmarkError("expected either MODEL folders to measure or --records with what was measured, not both")
    if into is not None:  # find out now, not after all the work
        try:
            around(into, section)
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"--into: {error}") from error
    if records_file is not None:
        found = read_records(records_file)
    else:
        lengths = contest.Lengths(prompt_tokens, new_tokens, long_prompt)
        contestants = contestants_of(model or [], kernel or KERNELS, gguf or [], genai or [], python, lengths)
        found = measured(contestants, sorted(set(threads or THREADS)), lengths, rounds, json_file)
    text = tables.markdown(found, baseline or tables.BASELINES)
    if into is None:
        print(text)
    else:
        insert(text, into, section)


def contestants_of(
    models: list[Path],
    kernels: list[str],
    ggufs: list[Path],
    genais: list[Path],
    python: Path,
    lengths: contest.Lengths,
) -> list[contest.Contestant]:
    """All engines, checked as far as that is possible without loading them.

    Raises:
        BenchmarkError: a file, a folder or llama-cpp-python is missing, or the tokens do not fit.
        Fairy2iRuntimeError: a folder is no model folder.
    """
    for folder in models:
        room = open_folder(folder).context_length
        if lengths.context > room:
            raise BenchmarkError(
                f"{folder}: prompt and new tokens are {lengths.context} together, more than the model was built for ({room}); "
                "measure fewer (--prompt-tokens, --new-tokens, --long-prompt)"
            )
    files: list[Path] = []
    for path in ggufs:
        inside = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise BenchmarkError(
                f"--gguf: {path}: expected a GGUF file or a folder of them; benchmarks/peers/gguf_files.py makes one"
            )
        files += inside
    if files:
        contest.check_python(python)
    found = [contest.fairy2i(folder, kernel) for folder in models for kernel in kernels]
    found += [contest.llama(file, python) for file in files]
    for folder in genais:
        if not (folder / "genai_config.json").is_file():
            raise BenchmarkError(
                f"--genai: {folder}: expected a folder of onnxruntime-genai's model builder, no genai_config.json"
            )
        found.append(contest.genai(folder))
    names = [contestant.name for contestant in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BenchmarkError(f"two engines are called {twice}; rename a folder or a file")
    return found


def measured(
    contestants: list[contest.Contestant], threads: list[int], lengths: contest.Lengths, rounds: int, json_file: Path | None
) -> list[tables.Record]:
    """Records of all numbers of threads; written after each, so that a long run can be stopped."""
    if json_file is not None:
        try:
            json_file.touch()
        except OSError as error:
            raise BenchmarkError(f"--json: cannot write {json_file}: {error.strerror}") from error
    console = Console(stderr=True)
    records: list[tables.Record] = []
    for count in threads:
        some = contest.measure(
            contestants, count, lengths, rounds, lambda text: console.print(text, style="dim", highlight=False)
        )
        for contestant, record in zip(contestants, some, strict=True):
            record["stored"] = stored_as(contestant, record["worker"])
            record["machine"] = machine()
        records += some
        if json_file is not None:
            json_file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records


def stored_as(contestant: contest.Contestant, worker: dict[str, Any]) -> dict[str, Any]:
    """What tables say of the weights."""
    if contestant.kind == "fairy2i":
        return stored.folder(contestant.file, worker["stored"])
    return (stored.gguf if contestant.kind == "llama" else stored.genai)(contestant.file)


def read_records(path: Path) -> list[tables.Record]:
    """What --json wrote.

    Raises:
        BenchmarkError: it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(found, list) and found and all("stored" in record for record in found)):
            raise ValueError("no records")
    except (OSError, ValueError, TypeError) as error:
        raise BenchmarkError(f"--records: {path}: expected records of end_to_end.py --json ({error})") from error
    return found


def main(arguments: list[str] | None = None) -> int:
    return run_app(app, "end_to_end", arguments, (BenchmarkError, Fairy2iRuntimeError))


if __name__ == "__main__":
    sys.exit(main())
