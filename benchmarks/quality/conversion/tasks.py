"""Tasks without training for them, made of a text that is given: needs no download.

    python benchmarks/quality/conversion/tasks.py MODEL... --text wizard_of_oz.txt [--items 200] [--kernel exact] [--json FILE]

What the items are is in cloze.py. A continuation counts as right if its log-likelihood is the highest of the four (also per
byte, as lm-eval's acc_norm), a last word if each of its tokens is the most likely one. Chance is 25 % and nearly 0. A MODEL
that is no exported folder is a checkpoint, run in torch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.cloze import Item, continuations, last_words
from conversion.subjects import FLOAT, Subject, is_exported, open_subject
from marked import markdown_table

from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.measure.scoring import TokenScores


def scored_choice(subject: Subject, context: str, choice: str) -> TokenScores:
    """Scores of what follows a context; the tokens are cut as lm-eval cuts them: those of both, less those of the context."""
    whole = subject.tokenizer.encode(context + choice)
    return subject.score(whole, len(subject.tokenizer.encode(context)))


def right_continuations(subject: Subject, items: list[Item]) -> dict[str, float]:
    """Share of items whose right answer is the likeliest, as a whole and per byte."""
    plain = normed = 0
    for item in items:
        likely = np.array([scored_choice(subject, item.context, choice).log_probs.sum() for choice in item.choices])
        size = np.array([len(choice.encode("utf-8")) for choice in item.choices])
        plain += int(likely.argmax() == item.answer)
        normed += int((likely / size).argmax() == item.answer)
    return {"items": len(items), "accuracy": plain / len(items), "per_byte": normed / len(items)}


def right_last_words(subject: Subject, items: list[Item]) -> dict[str, float]:
    """Share of last words that the model would write, and perplexity of those words, token by token."""
    found = [scored_choice(subject, item.context, item.choices[0]) for item in items]
    loss = -np.concatenate([scores.log_probs for scores in found]).mean()
    right = sum(bool(scores.greedy.all()) for scores in found)
    return {"items": len(items), "accuracy": right / len(items), "perplexity": float(np.exp(loss))}


def tasks_of(subject: Subject, text: str, count: int) -> dict[str, Any]:
    """Both tasks."""
    began = time.perf_counter()
    found: dict[str, Any] = {
        "continuation": right_continuations(subject, continuations(text, count)),
        "last word": right_last_words(subject, last_words(text, count)),
    }
    return {**found, "seconds": time.perf_counter() - began}


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported folders and checkpoints.")],
    text: Annotated[Path, typer.Option(help="English text to make the items of.")],
    items: Annotated[int, typer.Option(help="Of each task.")] = 200,
    kernel: Annotated[str, typer.Option(help="Of exported folders.")] = "exact",
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    results: list[dict[str, Any]] = []
    for model in models:
        used = kernel if is_exported(model) else FLOAT
        found = tasks_of(open_subject(model, used, threads), read_text(text), items)
        results.append({"model": model.resolve().name, "kernel": used, "tasks": found})
        print(f"{model.name} {used}: {json.dumps(found)}", flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table_of(results)))


def table_of(results: list[dict[str, Any]]) -> list[str]:
    """A row per model; ± is the standard error of a share of so many items."""
    rows = []
    for result in results:
        four, last = result["tasks"]["continuation"], result["tasks"]["last word"]
        shares = [_share(four["accuracy"], four["items"]), _share(four["per_byte"], four["items"])]
        rows.append([result["model"], result["kernel"], *shares, _share(last["accuracy"], last["items"])])
    return markdown_table(["model", "kernel", "1 of 4 continuations", "the same, per byte", "last word"], rows, left=2)


def _share(share: float, items: float) -> str:
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / items) ** 0.5:.1f} %"


if __name__ == "__main__":
    typer.run(main)
