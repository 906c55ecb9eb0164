"""Documents out of text files, tables, jsonl, Parquet and the hub, as one stream of the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairy2i_export.errors import OptionError
from fairy2i_export.source.text.text_files import check_file, check_text_file
from fairy2i_export.train.data.rows import MISSING, kind_of, no_column, read_rows
from fairy2i_runtime.measure.textfile import not_utf8

_CHUNK = 1 << 20
_LOOKED_AT = 1 << 26
_TRIED = 10_000  # rows without the column, until it is plain that the file has another one
_SHOWN = 5  # rows that a warning names
_NEEDED = "text: a UTF-8 file, .jsonl, .json, .csv, .tsv or .parquet"
HUB = "hf:"
Row = dict[str, Any]  # text: a document, or None; file and row: where it stands; problem: why it is none


class Skipped:
    """Counts the rows without text that are passed over."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def documents(self, rows: Iterator[Row]) -> Iterator[str]:
        """The text of those rows that have one."""
        for row in rows:
            if row["text"] is not None:
                yield row["text"]
                continue
            self.count += 1
            if len(self.first) < _SHOWN:
                self.first.append(f"{row['file']} row {row['row']} ({row['problem']})")

    @property
    def warnings(self) -> list[str]:
        """One sentence if there were any."""
        if not self.count:
            return []
        what = "1 row without text is" if self.count == 1 else f"{self.count:,} rows without text are"
        more = ", ..." if self.count > len(self.first) else ""
        return [f"{what} skipped: {', '.join(self.first)}{more}"]


def open_documents(names: Sequence[str], field: str, separator: str | None) -> Any:
    """A ``datasets.IterableDataset`` of rows with a document each, or none (see Row).

    Args:
        names: files, or ``hf:OWNER/NAME[:CONFIG[:SPLIT]]``.
        field: column of tables, jsonl, Parquet and hub data.
        separator: between documents of text files; None: a file is one document.

    Raises:
        OptionError: a file is missing or unreadable, no row has text in such a column, the separator is empty. What is wrong with
            the contents of a file is raised when they are read.
    """
    from datasets import IterableDataset, concatenate_datasets

    if separator == "":
        raise OptionError("--separator: expected at least one character, got none; leave it out for one document per file")
    parts = []
    for name in names:
        if name.startswith(HUB):
            parts.append(_hub_rows(name, field))
        elif kind_of(Path(name)) is None:
            parts.append(IterableDataset.from_generator(_read_text, gen_kwargs={"path": name, "separator": separator}))
        else:
            parts.append(IterableDataset.from_generator(_read_rows, gen_kwargs={"path": name, "field": field}))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def check_files(names: Sequence[str], option: str = "--data") -> None:
    """Raise OptionError if one of the files, which were given by this option, is missing, empty, or no file to read."""
    for name in names:
        if name.startswith(HUB):
            _hub_parts(name, option)
            continue
        try:
            rows = kind_of(Path(name)) is not None
            (check_file if rows else check_text_file)(name, option, _NEEDED)
        except OptionError as error:
            if Path(name).is_file():
                raise
            raise OptionError(f"{error} (data sets of the hub are written {HUB}OWNER/NAME)") from error


def without_separator(names: Sequence[str], separator: str | None) -> list[str]:
    """Text files at whose beginning (64 MB) the separator does not occur: most likely it is another one there."""
    if not separator:
        return []
    wanted = separator.encode()
    found = []
    for name in names:
        if name.startswith(HUB) or kind_of(Path(name)) is not None:
            continue
        with open(name, "rb") as file:
            if wanted not in file.read(_LOOKED_AT):
                found.append(name)
    return found


def fingerprint(names: Sequence[str]) -> list[list[Any]]:
    """What tells whether the files are still the same: name, size and time of change of each."""
    paths = [Path(name) for name in names if not name.startswith(HUB)]
    hub: list[list[Any]] = [[name] for name in names if name.startswith(HUB)]
    return hub + [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _hub_rows(name: str, field: str) -> Any:
    dataset = _load(name, *_hub_parts(name))
    try:
        first = next(iter(dataset), None)
    except Exception as error:  # whatever the library, the hub or the network have to say
        raise OptionError(f"{name}: cannot be read: {_reason(error)}") from error
    if first is None:
        raise OptionError(f"{name}: is empty; expected text to train on")
    if field not in first:
        raise no_column(name, field, _described(first))

    def row(values: dict[str, Any], index: int) -> Row:
        return _row(name, index + 1, values[field], field)

    return dataset.select_columns([field]).map(row, with_indices=True, remove_columns=[field])


def _hub_parts(name: str, option: str = "--data") -> tuple[str, str | None, str]:
    repo, config, split, *rest = (*name.removeprefix(HUB).split(":"), "", "")
    if not repo or any(rest):
        raise OptionError(
            f"{option} {name}: expected {HUB}OWNER/NAME, {HUB}OWNER/NAME:CONFIG or {HUB}OWNER/NAME:CONFIG:SPLIT"
        )
    return repo, config or None, split or "train"


def _load(name: str, builder: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(builder, config, split=split, streaming=True)
    except Exception as error:  # whatever the library, the hub or the network have to say
        raise OptionError(f"--data {name}: cannot be opened: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _described(columns: dict[str, Any]) -> list[str]:
    return [f"{name} ({type(value).__name__})" for name, value in columns.items()]


def _row(name: str, number: int, value: Any, field: str) -> Row:
    problem = _problem(value, field)
    return {"text": None if problem else value, "file": name, "row": number, "problem": problem}


def _problem(value: Any, field: str) -> str:
    """Why a value is no text to train on, in a few words; empty if it is."""
    if not isinstance(value, str):
        if value is MISSING:
            return f"no {field!r}"
        return "null" if value is None else type(value).__name__
    if not value.strip():
        return "empty"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"half of a character, {error.object[error.start]!a}"
    return ""


def _read_rows(path: str, field: str) -> Iterator[Row]:
    """Rows of a file, of which some must have text."""
    number, read, texts, columns = 0, 0, 0, dict[str, Any]()
    has_column, problems = False, list[str]()
    for number, value, found in read_rows(Path(path), field):
        row = _row(path, number, value, field)
        read += 1
        texts += row["text"] is not None
        has_column = has_column or value is not MISSING
        columns = columns or found
        if row["text"] is None and len(problems) < _SHOWN:
            problems.append(f"row {number}: {row['problem']}")
        if read == _TRIED and not has_column:
            break
        yield row
    if not read:
        raise OptionError(f"{path}: is empty, it has no rows; expected text to train on")
    if not has_column:
        raise no_column(path, field, _described(columns))
    if not texts:
        raise OptionError(
            f"{path}: none of its {read:,} rows has text in the column {field!r} ({', '.join(problems)}); expected text in "
            "some; another column is chosen with --field"
        )


def _read_text(path: str, separator: str | None) -> Iterator[Row]:
    """Documents of a text file, without reading all of it at once where there is a separator."""
    rest, number = "", 0
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            if separator is None:
                rest = file.read()
            else:
                while chunk := file.read(_CHUNK):
                    *documents, rest = (rest + chunk).split(separator)
                    for number, document in enumerate(documents, number + 1):  # noqa: B020  # goes on counting
                        if document.strip():
                            yield _row(path, number, document, "text")
        except UnicodeDecodeError as error:
            raise OptionError(f"{path}: expected UTF-8 text; {not_utf8(error)}") from error
    if rest.strip():
        yield _row(path, number + 1, rest, "text")
