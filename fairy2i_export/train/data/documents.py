"""Documents out of text files, jsonl, parquet and the hub, as one stream of the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairy2i_export.errors import OptionError

_CHUNK = 1 << 20
_LOOKED_AT = 1 << 26
_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_PACKED = (".gz", ".zst", ".xz", ".bz2")
HUB = "hf:"


def open_documents(names: Sequence[str], field: str, separator: str | None) -> Any:
    """A ``datasets.IterableDataset`` whose rows are {"text": document}.

    Args:
        names: files, or ``hf:OWNER/NAME[:CONFIG[:SPLIT]]``.
        field: column of jsonl, parquet and hub data.
        separator: between documents of text files; None: a file is one document.

    Raises:
        OptionError: a file is missing or unreadable, a data set has no such column, the separator is empty.
    """
    from datasets import concatenate_datasets

    if separator == "":
        raise OptionError("--separator: expected at least one character, got none; leave it out for one document per file")
    parts = [_open(name, field, separator) for name in names]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def check_files(names: Sequence[str], option: str = "--data") -> None:
    """Raise OptionError if one of the files, which were given by this option, is missing or empty."""
    for name in names:
        if name.startswith(HUB):
            continue
        path = Path(name)
        if not path.is_file():
            what = "is a folder; name its files" if path.is_dir() else "no such file"
            raise OptionError(f"{option} {name}: {what} (data sets of the hub are written {HUB}OWNER/NAME)")
        if path.stat().st_size == 0:
            raise OptionError(f"{option} {name}: is empty; expected text")


def without_separator(names: Sequence[str], separator: str | None) -> list[str]:
    """Text files at whose beginning (64 MB) the separator does not occur: most likely it is another one there."""
    if not separator:
        return []
    wanted = separator.encode()
    found = []
    for name in names:
        if name.startswith(HUB) or _kind(Path(name)) is not None:
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


def _open(name: str, field: str, separator: str | None) -> Any:
    from datasets import IterableDataset

    if name.startswith(HUB):
        return _column(_load(name, *_hub_parts(name)), name, field)
    kind = _kind(Path(name))
    if kind is None:
        return IterableDataset.from_generator(_read_text, gen_kwargs={"path": name, "separator": separator})
    return _column(_load(name, kind, None, "train", data_files=str(Path(name).resolve())), name, field)


def _kind(path: Path) -> str | None:
    """The builder of ``datasets`` for a file; None for plain text."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
        if not suffixes or suffixes[-1] not in _KINDS:
            raise OptionError(f"{path}: compressed text is read as .jsonl only; unpack it first")
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _hub_parts(name: str) -> tuple[str, str | None, str]:
    repo, config, split, *rest = (*name.removeprefix(HUB).split(":"), "", "")
    if not repo or any(rest):
        raise OptionError(f"--data {name}: expected {HUB}OWNER/NAME, {HUB}OWNER/NAME:CONFIG or {HUB}OWNER/NAME:CONFIG:SPLIT")
    return repo, config or None, split or "train"


def _load(name: str, builder: str, config: str | None, split: str, **files: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(builder, config, split=split, streaming=True, **files)
    except Exception as error:  # whatever the library, the hub or the network have to say
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(f"--data {name}: cannot be opened: {reason}") from error


def _column(dataset: Any, name: str, field: str) -> Any:
    try:
        first = next(iter(dataset), None)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(f"{name}: cannot be read: {reason}") from error
    if first is None:
        raise OptionError(f"{name}: is empty; expected text to train on")
    if not isinstance(first.get(field), str):
        found = ", ".join(f"{key} ({type(value).__name__})" for key, value in first.items())
        raise OptionError(f"{name}: expected a column {field!r} of text, found {found}; choose it with --field")
    return (
        dataset.select_columns([field]).rename_column(field, "text") if field != "text" else dataset.select_columns(["text"])
    )


def _read_text(path: str, separator: str | None) -> Iterator[dict[str, str]]:
    """Documents of a text file, without reading all of it at once where there is a separator."""
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:
        try:
            if separator is None:
                rest = file.read()
            else:
                while chunk := file.read(_CHUNK):
                    *documents, rest = (rest + chunk).split(separator)
                    yield from ({"text": document} for document in documents if document.strip())
        except UnicodeDecodeError as error:
            raise OptionError(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#x}") from error
    if rest.strip():
        yield {"text": rest}
