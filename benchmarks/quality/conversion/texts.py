"""Perplexity on four texts: of exported folders by every kernel, of float checkpoints in torch.

    python benchmarks/quality/conversion/texts.py MODEL... --wikitext wikitext2_test.txt --other wizard_of_oz.txt \
        [--conversations FILE] [--kernels exact,lut,dot] [--json FILE]

``wiki-2k`` and ``wiki-16k``: tokens 0 to 2,047 of the first file, and the 16,384 that follow. ``other``: the first 8,192
tokens of the second file, another kind of text. All in windows of 1,024 without overlap, every token but the first of a
window scored. ``answers``: conversations that the float model wrote (speech/conversations.py), the assistant's words scored.
A MODEL that is no exported folder is taken for a checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.subjects import FLOAT, Subject, is_exported, open_subject
from converted import parts_of
from marked import markdown_table
from speech.dialogue import answer_windows, read_conversations

from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.measure.perplexity import Windows, measure

WINDOW = 1024
CONVERSATIONS = Path(__file__).resolve().parents[1] / "speech" / "data" / "conversations.json"
TEXTS = ("wiki-2k", "wiki-16k", "other", "answers")
LENGTHS = {"wiki-2k": 2_048, "wiki-16k": 16_384, "other": 8_192}


def texts_of(
    folder: Path,
    wikitext: str | None,
    other: str | None,
    conversations: Sequence[dict[str, Any]] | None,
    window: int = WINDOW,
) -> dict[str, Windows]:
    """The texts by name, cut for a model.

    Args:
        folder: holds tokenizer and chat template.
        wikitext: of it two parts are read.
        other: another kind of text.
        conversations: as speech/dialogue.py has them; not read by a model without a chat template.
        window: tokens that are read in one run.

    Raises:
        typer.BadParameter: too short a text.
    """
    from fairy2i_runtime.text.chat_template import ChatTemplate
    from fairy2i_runtime.text.tokenizer import Tokenizer

    found: dict[str, Windows] = {}
    if wikitext is not None:
        names = ("wiki-2k", "wiki-16k")
        parts = parts_of(folder, wikitext, [LENGTHS[name] for name in names], window)
        found |= dict(zip(names, parts, strict=True))
    if other is not None:
        (found["other"],) = parts_of(folder, other, [LENGTHS["other"]], window)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.load(folder, tokenizer.special_tokens)
    if conversations and template is not None:
        found["answers"] = answer_windows(tokenizer, template, conversations, tokenizer.eos_id)
    return found


def texts_in(folder: Path, wikitext: Path | None, other: Path | None, conversations: Path | None) -> dict[str, Windows]:
    """:func:`texts_of` what these files hold."""
    return texts_of(
        folder,
        None if wikitext is None else read_text(wikitext),
        None if other is None else read_text(other),
        None if conversations is None else read_conversations(conversations),
    )


def measured(subject: Subject, texts: dict[str, Windows]) -> dict[str, dict[str, float]]:
    """Perplexity, standard error of its logarithm, and seconds, by text."""
    results = {}
    for name, windows in texts.items():
        began = time.perf_counter()
        found = measure(windows, lambda ids: subject.score(ids).log_probs)
        results[name] = {
            "perplexity": found.perplexity,
            "loss_error": found.loss_error,
            "scored": windows.scored,
            "seconds": time.perf_counter() - began,
        }
    return results


def main(
    models: Annotated[list[Path], typer.Argument(help="Exported folders, and checkpoints to be run in torch.")],
    wikitext: Annotated[Path | None, typer.Option(help="WikiText-2 test text.")] = None,
    other: Annotated[Path | None, typer.Option(help="Text of another kind.")] = None,
    conversations: Annotated[Path | None, typer.Option(help="Conversations that the float model wrote.")] = CONVERSATIONS,
    only: Annotated[str, typer.Option(help="Texts to measure.")] = ",".join(TEXTS),
    kernels: Annotated[str, typer.Option(help="Kernels, the one to compare with first.")] = "exact,lut",
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and print."""
    console = Console()
    texts = texts_in(models[0], wikitext, other, conversations)
    texts = {name: windows for name, windows in texts.items() if name in only.split(",")}
    results: list[dict[str, Any]] = []
    for model in models:
        for kernel in kernels.split(",") if is_exported(model) else [FLOAT]:
            found = measured(open_subject(model, kernel, threads), texts)
            results.append({"model": model.name, "kernel": kernel, "texts": found})
            shown = ", ".join(
                f"{name} {figure['perplexity']:.3f} ({figure['seconds']:.0f} s)" for name, figure in found.items()
            )
            console.print(f"{model.name} {kernel}: {shown}", highlight=False)
            if json_file is not None:  # after every model: a long run can be stopped
                json_file.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(table_of(results)))


def table_of(results: list[dict[str, Any]]) -> list[str]:
    """Perplexities, and how many times the float model's the answers' is, if that was measured."""
    names = [name for name in TEXTS if any(name in result["texts"] for result in results)]
    floats = [result for result in results if result["kernel"] == FLOAT]
    rows = []
    for result in results:
        figures = {name: result["texts"][name]["perplexity"] for name in names}
        cells = [result["model"], result["kernel"], *(f"{figures[name]:.2f}" for name in names)]
        if floats:
            cells += [f"{figures[name] / floats[0]['texts'][name]['perplexity']:.2f}" for name in names]
        rows.append(cells)
    over = [f"{name} / float" for name in names] if floats else []
    return markdown_table(["model", "kernel", *names, *over], rows, left=2)


if __name__ == "__main__":
    typer.run(main)
