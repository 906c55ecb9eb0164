"""What drafts that are looked up in the text (``lookup``) gain and lose, on answers that repeat the question and on others.

Every prompt is answered by turns with the option and without it, greedily. Other programs on the machine disturb both alike, so the
ratio of a round means more than its times. Answers of a model with an int8 cache should be equal; where one is not, the script says
from where on.
"""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Annotated

import typer

import fairy2i_runtime
from fairy2i_runtime.model import Model
from fairy2i_runtime.text.result import Result

PASSAGE = (
    "The lighthouse at Gull Point was built in 1871 from grey stone that was carried up the coast in small boats. Its lamp was lit "
    "every evening by the keeper, Martha Lowe, who climbed the one hundred and twelve steps with a can of oil in each hand. In the "
    "winter of 1904 a storm broke three panes of the lantern room, and Martha Lowe kept the lamp burning for two nights behind "
    "blankets and boards. The fishing boats of Gull Point came home safely on both nights. Since 1962 the lamp has been electric, "
    "and the lighthouse at Gull Point is now a small museum that is open from May to September."
)
FUNCTION = (
    "def total_price(items, tax_rate):\n    total = 0\n    for item in items:\n        total = total + item.price * item.quantity\n"
    "    total = total + total * tax_rate\n    return total\n"
)
TASKS = {
    "chat": [
        "What is gravity?",
        "How do I make a cup of tea?",
        "Tell me about the history of bicycles.",
        "Why do leaves change their colour in autumn?",
    ],
    "copying": [
        f"Repeat this text word for word:\n\n{PASSAGE}",
        f"Correct the spelling of this text and write it again:\n\n{PASSAGE.replace('evening', 'evning')}",
        f"Summarize this text:\n\n{PASSAGE}",
        f"Rename the variable total to amount in this function and write the whole function:\n\n{FUNCTION}",
    ],
}


def answer(model: Model, question: str, new_tokens: int, lookup: int) -> Result:
    """One answer, from an empty cache."""
    return model.chat([{"role": "user", "content": question}], max_new_tokens=new_tokens, lookup=lookup)


def equal_tokens(one: Result, other: Result) -> int:
    """How many tokens the answers begin with in common."""
    pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one.token_ids), len(other.token_ids)))


def main(
    folder: Annotated[Path, typer.Argument(help="A model folder with a chat template.")],
    lookup: Annotated[list[int] | None, typer.Option(help="Tokens to draft at most; may be repeated.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 150,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 7,
    threads: Annotated[int | None, typer.Option()] = None,
    kernel: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Print a row for every kind of task and number of drafted tokens."""
    model = fairy2i_runtime.load(folder, threads=threads, kernel=kernel)
    print(f"{platform.processor() or platform.machine()}, {rounds} interleaved rounds, kernel {kernel or 'of the folder'}")
    print(
        "| task | lookup | accepted | tokens per run | speed to none, median (range) | equal answers |\n|---|---|---|---|---|---|"
    )
    for kind, questions in TASKS.items():
        for most in lookup or [4, 8, 16]:
            ratios, same, timings = [], 0, []
            for question in questions:
                for number in range(rounds):
                    plain, ahead = (answer(model, question, new_tokens, each) for each in (0, most))
                    ratios.append(ahead.timings.decode_tokens_per_second / plain.timings.decode_tokens_per_second)
                    if number == 0:
                        timings.append(ahead.timings)
                        same += plain.token_ids == ahead.token_ids
                        if plain.token_ids != ahead.token_ids:
                            print(
                                f"  other after {equal_tokens(plain, ahead)} of {len(plain.token_ids)} tokens: {question[:40]!r}"
                            )
            drafted, accepted = (sum(getattr(each, name) for each in timings) for name in ("drafted", "accepted"))
            tokens = sum(each.decode_tokens for each in timings)
            print(
                f"| {kind} | {most} | {accepted} of {drafted} | {tokens / (tokens - accepted):.2f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {same} of {len(questions)} |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
