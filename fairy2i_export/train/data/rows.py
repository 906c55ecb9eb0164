"""Rows of .jsonl, .json, .csv, .tsv and Parquet files: the values of one column, whatever they are, with their row's number.

Files that users made hold everything: rows without the column, numbers, nulls, half characters. Whoever reads rows gets all of
them and decides what to do with those that are no text (documents.py); what cannot be read at all ends here, with file and row.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from fairy2i_export.errors import OptionError
from fairy2i_runtime.measure.textfile import not_utf8

MISSING: Any = object()  # stands for the value of a row without the column
PACKED = (".gz", ".zst", ".xz", ".bz2")
_BATCH = 1024  # rows of a Parquet file decoded together
_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error)  # of what unpacks
_LONGEST = (1 << 31) - 1  # characters of a field of a csv file
Row = tuple[
    int, Any, dict[str, Any]
]  # number from 1, value of the column or MISSING, all of its columns where that is known


def kind_of(path: Path) -> str | None:
    """The kind of a file with rows, by its name; None for plain text.

    Raises:
        OptionError: compressed text of a kind that is not read so.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    if packed:
        suffixes.pop()
    kind = suffixes[-1] if suffixes and suffixes[-1] in _READERS else None
    if packed and kind not in (".jsonl", ".json"):
        raise OptionError(f"{path}: compressed text is read as .jsonl only; unpack it first")
    return kind


def read_rows(path: Path, field: str) -> Iterator[Row]:
    """All rows of a file of some :func:`kind_of`.

    Args:
        path: the file.
        field: the column that is wanted.

    Raises:
        OptionError: the file cannot be read; says the row, which is the line in .jsonl and counts from below the names of columns
            in .csv and .tsv.
    """
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path}: no file with rows")
    yield from _READERS[kind](path, field)


def _json_rows(path: Path, field: str) -> Iterator[Row]:
    """One object per line, a list of objects, or one object whose columns are lists."""
    with _opened(path) as file:
        lines = enumerate(_lines(path, file), 1)
        number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
        try:
            value = json.loads(first.rstrip() or "[]")
        except (ValueError, RecursionError) as error:
            opening = first.strip()
            if kind_of(path) == ".jsonl" and not opening.startswith("[") and opening != "{":
                raise _broken(path, number, error) from error
            yield from _whole(path, number, first, first + "".join(line for _, line in lines), field)
            return
        second = next(((number, line) for number, line in lines if line.strip()), None)
        if isinstance(value, list) and second is None:
            yield from _listed(value, field)
            return
        if second is None and isinstance(value, dict) and isinstance(value.get(field), list):
            yield from _column(value[field])
            return
        yield _row(number, value, field)
        for number, line in chain([] if second is None else [second], lines):
            if line.strip():
                yield _row(number, _parsed(path, number, line), field)


def _whole(path: Path, number: int, first: str, text: str, field: str) -> Iterator[Row]:
    """The rows of a file that is one JSON value over several lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and not _complete(first):
            raise _broken(path, number + error.lineno - 1, error) from error
        _parsed(path, number, first)  # the first line is broken by itself
        raise
    if isinstance(value, list):
        yield from _listed(value, field)
    elif isinstance(value, dict) and isinstance(value.get(field), list):
        yield from _column(value[field])
    else:
        yield _row(1, value, field)


def _complete(line: str) -> bool:
    """Whether a line looks like a whole object: then its file has one per line."""
    stripped = line.strip()
    return stripped.startswith("{") and stripped.endswith("}")


def _listed(values: list[Any], field: str) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        yield _row(number, value, field)


def _column(values: list[Any]) -> Iterator[Row]:
    """Rows of one column."""
    for number, value in enumerate(values, 1):
        yield number, value, {}


def _row(number: int, value: Any, field: str) -> Row:
    if isinstance(value, dict):
        return number, value.get(field, MISSING), value
    return number, MISSING, {}


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line.rstrip())  # or the end of the line would be where a missing bracket is missed
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, error) from error


def _broken(path: Path, number: int, error: Exception) -> OptionError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return OptionError(
        f"{path}: cannot be read: row {number}{where}: broken JSON ({reason}); expected one object per line, "
        'such as {"text": "..."}, or a list of objects'
    )


def _table_rows(path: Path, field: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    number = 0
    with path.open("rb") as file:
        table = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        try:
            names = next(table, None)
            if names is None:
                return
            if field not in names:
                raise no_column(path, field, names)
            place = names.index(field)
            for number, values in enumerate((row for row in table if row), 1):
                yield number, values[place] if place < len(values) else MISSING, {}
        except csv.Error as error:
            raise OptionError(
                f"{path}: cannot be read: row {number + 1} (line {table.line_num}): {error}; expected a table whose first line "
                "names the columns, fields with quotes or line breaks in double quotes"
            ) from error


def _parquet_rows(path: Path, field: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise no_column(
                    path, field, [f"{name} ({kind})" for name, kind in zip(names, file.schema_arrow.types, strict=True)]
                )
            for batch in file.iter_batches(_BATCH, columns=[field]):
                for number, value in enumerate(batch.column(0), number + 1):  # noqa: B020  # goes on counting
                    yield number, _python(value), {}
    except (pyarrow.ArrowException, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(f"{path}: cannot be read: row {number + 1}: {reason}; expected a Parquet file") from error


def _python(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error.object  # bytes, then


def no_column(path: Path | str, field: str, found: list[str]) -> OptionError:
    """The error for a file without the column that is wanted; ``found`` are those that it has."""
    have = ", ".join(found) or "no columns"
    return OptionError(f"{path}: expected a column {field!r} of text, found {have}; choose it with --field")


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Lines of a UTF-8 file, with their ends."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: cannot be read: row {number}: expected UTF-8 text; {not_utf8(error)}") from error
    except _BROKEN as error:
        if path.suffix.lower() not in PACKED:
            raise
        raise OptionError(f"{path}: cannot be unpacked after row {number}: {error}; it is damaged or incomplete") from error


def _opened(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _zstandard(path)
    unpack: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opened: IO[bytes] = unpack.get(suffix, open)(path, "rb")
    return opened


def _zstandard(path: Path) -> IO[bytes]:
    try:
        from zstandard import open as unpack
    except ImportError as error:
        raise OptionError(
            f"{path}: .zst needs a package that is not there: pip install zstandard, or unpack it first"
        ) from error
    opened: IO[bytes] = unpack(path, "rb")
    return opened


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": lambda path, field: _table_rows(path, field, ","),
    ".tsv": lambda path, field: _table_rows(path, field, "\t"),
    ".parquet": _parquet_rows,
}
