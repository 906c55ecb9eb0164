"""Answers of several models side by side, without their names: readers judge themselves. The key stands at the end.

    python benchmarks/quality/speech/blind.py float=SMOLLM2 4=DIR4 3=DIR3 2=DIR2 --work DIR --into docs/answers.md

NAME=MODEL: an exported folder or a checkpoint, which answers as for answers.py (and is not asked again if it did), or a JSON
file that answers.py kept. The order of the models is drawn anew for every question, from a fixed seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speech.answers import kept_answers

LETTERS = "ABCDEFGH"
_HEAD = """# Answers side by side

{count} questions, each answered by {models} models whose names and order are hidden; the [key](#key) is at the end. Written by
`benchmarks/quality/speech/blind.py`: {sampling}; nothing is chosen or left out. Answers end with " [...]" where they were cut.
"""


def page(answers: dict[str, list[dict[str, Any]]], sampling: str, count: int, seed: int) -> str:
    """Markdown of all answers, and the key.

    Args:
        answers: name of a model -> its answers, all to the same questions.
        sampling: how they were drawn, for readers.
        count: questions, evenly spread over those that were asked.
        seed: of the order.

    Raises:
        ValueError: the models were asked different questions, or there are too many of them.
    """
    names = list(answers)
    asked = [[item["question"] for item in found] for found in answers.values()]
    if len(names) > len(LETTERS) or any(questions != asked[0] for questions in asked):
        raise ValueError(f"expected at most {len(LETTERS)} models that were asked the same questions")
    random = np.random.default_rng(seed)
    parts, key = [_HEAD.format(count=count, models=len(names), sampling=sampling)], []
    for number, index in enumerate(np.linspace(0, len(asked[0]) - 1, count).round().astype(int), 1):
        order = random.permutation(len(names))
        parts.append(f"\n## {number}. {asked[0][index]}\n")
        for letter, place in zip(LETTERS, order, strict=False):
            item = answers[names[place]][index]
            text = item["answer"].strip() or "(nothing)"
            quoted = "\n".join(
                f"    {line}".rstrip() for line in (text + ("" if item["finished"] else " [...]")).split("\n")
            )
            parts.append(f"\n**{letter}**\n\n{quoted}\n")
        key.append([str(number), *(names[place] for place in order)])
    headings = ["question", *LETTERS[: len(names)]]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *key))
    return "".join(parts) + f"\n## Key\n\n{rows}\n"


def main(
    models: Annotated[list[str], typer.Argument(metavar="NAME=MODEL...", help="What is compared.")],
    work: Annotated[Path, typer.Option(help="Where answers are kept.")],
    into: Annotated[Path, typer.Option(help="Markdown file to write.")],
    questions: Annotated[int, typer.Option(help="How many.")] = 20,
    kernel: Annotated[str, typer.Option(help="Of exported folders.")] = "exact",
    tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 80,
    greedy: Annotated[bool, typer.Option(help="Take the most likely token.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
) -> None:
    """Ask and write."""
    found = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected NAME=MODEL, got {given!r}")
        if path.endswith(".json"):
            found[name] = json.loads(Path(path).read_text(encoding="utf-8"))
        else:
            found[name] = kept_answers(work, Path(path), kernel, tokens, greedy, threads)
    drawn = {json.dumps(item["sampling"], sort_keys=True) for item in found.values()}
    if len(drawn) > 1:
        raise typer.BadParameter(f"the answers were drawn in different ways: {', '.join(sorted(drawn))}")
    options = json.loads(drawn.pop())
    sampling = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in options.items())
    into.write_text(
        page({name: item["answers"] for name, item in found.items()}, sampling, questions, seed), encoding="utf-8"
    )
    print(f"{into}: {questions} questions, {len(found)} models")


if __name__ == "__main__":
    typer.run(main)
