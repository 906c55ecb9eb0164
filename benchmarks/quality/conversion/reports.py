"""Tables of what was measured.

    python benchmarks/quality/conversion/reports.py WORK [--into docs/quality.md] [--speech JSON] [--tasks JSON] [--types DIR]

WORK is that of ablation.py; with --speech, --tasks and --types further tables are made of what answers.py and tasks.py wrote
(--json), and of the work folder of rivals/llama_types.py.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion import tasks
from conversion.grid import CASES
from conversion.rivals import llama_types
from conversion.texts import TEXTS
from marked import markdown_table, print_or_put
from speech import answers

Result = dict[str, Any]


def results_of(work: Path) -> list[Result]:
    """Finished runs, in the order of the grid."""
    found = []
    for case in CASES:
        found += [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob(f"{case.name}-[0-9].json"))]
    return found


def spread(values: list[float], digits: int = 2) -> str:
    """Mean, with the standard deviation over samples if there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def texts_in(results: list[Result], base: Result | None) -> list[str]:
    known = [next(iter(result["kernels"].values())) for result in results] + ([base["texts"]] if base else [])
    return [name for name in TEXTS if any(name in texts for texts in known)]


def grouped(results: list[Result]) -> dict[str, list[Result]]:
    """Case -> its samples."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["case"], []).append(result)
    return found


def quality_table(results: list[Result], base: Result | None, stages: bool) -> list[str]:
    """Perplexities of the first kernel and costs, a row per case.

    Args:
        results: of one group.
        base: of the float model.
        stages: whether to tell the number of stages in a column of its own.
    """
    names = texts_in(results, base)
    rows = []
    if base is not None:
        figures = [f"{base['texts'][name]['perplexity']:.2f}" if name in base["texts"] else "" for name in names]
        over = "1" if "answers" in base["texts"] else ""
        rows.append(["float", *(["", ""] if stages else [""]), *figures, over, "", "", "", ""])
    for found in grouped(results).values():
        first = [next(iter(result["kernels"].values())) for result in found]
        figures = [spread([texts[name]["perplexity"] for texts in first]) if name in first[0] else "" for name in names]
        ratio = ""
        if base is not None and "answers" in base["texts"] and "answers" in first[0]:
            ratio = spread([texts["answers"]["perplexity"] / base["texts"]["answers"]["perplexity"] for texts in first])
        costs = [
            spread([result["seconds"] / 60 for result in found], 1),
            spread([result["processor_seconds"] / 60 for result in found], 1),
            f"{max(result['peak_bytes'] for result in found) / 1e9:.1f}",
            f"{statistics.mean(result['model_bytes'] for result in found) / 1e6:.0f}",
        ]
        number = [found[0]["arguments"][1]] if stages else []
        rows.append(
            [found[0]["label"], *number, f"{statistics.mean(r['bits'] for r in found):.2f}", *figures, ratio, *costs]
        )
    costs = ["minutes", "processor minutes", "peak GB", "model MB"]
    headings = ["conversion", *(["stages"] if stages else []), "bits", *names, "answers / float", *costs]
    return markdown_table(headings, rows)


def kernel_table(results: list[Result]) -> list[str]:
    """How far each kernel's perplexity is from that of the first one: the mean over samples and the worst of them, text by text."""
    kernels = list(dict.fromkeys(kernel for result in results for kernel in result["kernels"]))
    names = texts_in(results, None)
    rows = []
    for found in grouped(results).values():
        for kernel in kernels[1:]:
            having = [
                result["kernels"] for result in found if kernel in result["kernels"] and kernels[0] in result["kernels"]
            ]
            cells = []
            for name in names:
                changes = [
                    each[kernel][name]["perplexity"] / each[kernels[0]][name]["perplexity"] - 1
                    for each in having
                    if name in each[kernel]
                ]
                cells.append(f"{statistics.mean(changes):+.2%} (worst {max(changes, key=abs):+.2%})" if changes else "")
            rows.append([found[0]["label"], kernel, *cells])
    return markdown_table(["conversion", f"kernel, against {kernels[0] if kernels else 'exact'}", *names], rows, left=2)


def tables(
    work: Annotated[Path, typer.Argument(help="Of ablation.py.")],
    into: Annotated[Path | None, typer.Option(help="Markdown file with marked places; default: print.")] = None,
    speech: Annotated[Path | None, typer.Option(help="JSON of answers.py.")] = None,
    tasks_json: Annotated[Path | None, typer.Option("--tasks", help="JSON of tasks.py.")] = None,
    types: Annotated[Path | None, typer.Option(help="Work folder of llama_types.py.")] = None,
) -> None:
    """Make all tables for which there are figures."""
    results = results_of(work)
    base = json.loads((work / "float.json").read_text(encoding="utf-8")) if (work / "float.json").exists() else None
    by_group: Callable[[str], list[Result]] = lambda group: [result for result in results if result["group"] == group]  # noqa: E731
    blocks: dict[str, list[str]] = {}
    if bits := by_group("bits"):
        blocks["conversion-bits"] = quality_table(bits, base, stages=False)
        blocks["conversion-kernels"] = kernel_table(bits)
    if by_group("ablation"):
        whole = [result for result in results if result["sample"] == 0 and result["case"] in ("2", "3")]
        rows = sorted(whole + by_group("ablation"), key=lambda result: str(result["arguments"][1]))
        blocks["conversion-ablation"] = quality_table(rows, base, stages=True)
    if speech is not None:
        blocks["conversion-speech"] = answers.table_of(json.loads(speech.read_text(encoding="utf-8")))
    if tasks_json is not None:
        blocks["conversion-tasks"] = tasks.table_of(json.loads(tasks_json.read_text(encoding="utf-8")))
    if types is not None:
        order = llama_types.TYPES.split(",")
        files = [types / f"{name}{suffix}.json" for name in order for suffix in ("", "-pure")]
        measured = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.exists()]
        blocks["conversion-types"] = llama_types.table_of(measured)
    print_or_put(into, blocks)


if __name__ == "__main__":
    typer.run(tables)
