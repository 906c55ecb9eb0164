"""Tables on any terminal: where one is too narrow for a table, each of its rows is a paragraph. No number is ever cut."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_INDENT = 2


def print_table(out: Console, table: Table) -> None:
    """Print a table, its title in a line of its own.

    Columns that must not be folded inside a word need not say so: a table is used only if all words fit.
    """
    title, table.title = table.title, None
    if title:
        out.print(title, style="bold", highlight=False, soft_wrap=True)
    if _fit(out, table):
        out.print(table)
        return
    for line in _paragraphs(table, out.width):
        out.print(line, highlight=False, soft_wrap=True)


def _fit(out: Console, table: Table) -> bool:
    """Divide the width of a terminal among the columns, every one at least as wide as its longest word; False: too narrow."""
    wide = out.options.update(max_width=10_000)
    least, most = [], []
    for column in table.columns:
        column.no_wrap, column.overflow, column.width = False, "fold", None
        cells = [*column.cells, *([column.header] if table.show_header else [])]
        measured = [Measurement.get(out, wide, _text(cell)) for cell in cells]
        least.append(max(size.minimum for size in measured))
        most.append(max(size.maximum for size in measured))
    frame = Measurement.get(out, wide, table).maximum - sum(most)
    spare = out.width - frame - sum(least)
    wanted = sum(most) - sum(least)
    if spare < 0:
        return False
    for column, low, high in zip(table.columns, least, most, strict=True):
        column.width = high if spare >= wanted else low + spare * (high - low) // wanted
    return True


def _paragraphs(table: Table, width: int) -> Iterator[Text]:
    """The rows one below the other: the first cell as a title, below it the others with their headings."""
    headings = [_line(column.header) if table.show_header else "" for column in table.columns]
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        first, *others = (_text(cell) for cell in cells[: len(headings)])
        named = zip(headings[1:], others, strict=True)
        pairs = [f"{heading} {_line(cell)}".strip() for heading, cell in named if cell.plain.strip()]
        if not table.show_header:  # the first cell is the name of the second
            yield from _wrapped(f"{_line(first)}: {', '.join(pairs)}" if pairs else _line(first), width, _INDENT)
        else:
            yield from _wrapped(f"{headings[0]} {_line(first)}".strip(), width, 0) if first.plain.strip() else ()
            yield from _fill(pairs, width)
        if row.end_section:
            yield Text()
    yield Text()


def _fill(parts: list[str], width: int) -> Iterator[Text]:
    """As many parts in a line as fit."""
    line = ""
    for part in parts:
        longer = f"{line}, {part}" if line else part
        if line and len(longer) + 1 > width - _INDENT:
            yield from _wrapped(" " * _INDENT + line + ",", width, _INDENT)
            longer = part
        line = longer
    if line:
        yield from _wrapped(" " * _INDENT + line, width, _INDENT)


def _wrapped(text: str, width: int, indent: int) -> Iterator[Text]:
    """Lines of whole words; a longer one is left to the terminal."""
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return (Text(line) for line in lines)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def _line(cell: object) -> str:
    return " ".join(_text(cell).plain.replace("/\n", "/").split())
