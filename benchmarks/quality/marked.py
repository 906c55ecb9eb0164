"""Tables in a Markdown document: each stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``, and is written there by a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer


def put_blocks(document: Path, blocks: Mapping[str, Sequence[str]]) -> None:
    """Replace what stands at marked places of a document.

    Args:
        document: Markdown file; written only if all places are there.
        blocks: name of a place -> its new lines.

    Raises:
        typer.BadParameter: a place that the document does not have.
    """
    text = document.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise typer.BadParameter(f"{document}: has no place {begin} ... {end}")
        head, rest = text.split(begin, 1)
        text = head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    document.write_text(text, encoding="utf-8")


def print_or_put(document: Path | None, blocks: Mapping[str, Sequence[str]]) -> None:
    """Write the blocks into a document, or print them if there is none."""
    if document is not None:
        put_blocks(document, blocks)
        return
    for name, lines in blocks.items():
        print(f"{name}\n\n" + "\n".join(lines) + "\n")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table; the first ``left`` columns are text, the others figures."""
    rule = ["---"] * left + ["--:"] * (len(headings) - left)
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]
