"""Whether the files of a model folder are those that were exported: SHA256SUMS, as ``sha256sum -c`` reads it.

The model card is not among them: people edit it, and so do the places where models are shared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from fairy2i_runtime.errors import ModelFolderError, printable
from fairy2i_runtime.regular_file import open_regular, read_regular

SUMS_FILE = "SHA256SUMS"
_NOT_LISTED = {SUMS_FILE, "README.md"}
# what hosts read by itself: such a file that is not listed was put there by somebody else
_READ = re.compile(r".*\.(json|jinja)|model\.onnx.*|tokenizer\.model|merges\.txt")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\0\r\n]+)")
_CHUNK = 1 << 20
SUMS_BYTES = 1 << 20
_ANY_SIZE = 1 << 62


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS for the files in a folder and its sub-folders; the same files give the same bytes."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_names(folder))]
    (folder / SUMS_FILE).write_bytes("".join(lines).encode())


def integrity_problems(folder: Path) -> tuple[list[str], int]:
    """(what is wrong with the files of a folder, a sentence each; the number of files that were hashed).

    Raises:
        ModelFolderError: if the folder has no SHA256SUMS, or one that is damaged.
    """
    path = folder / SUMS_FILE
    listed = _read(path)
    problems = []
    for name, expected in listed.items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError:
            problems.append(f"{printable(name)} is missing")
            continue
        except OSError as error:
            problems.append(f"{printable(name)}: {error.strerror}")
            continue
        if found != expected:
            problems.append(f"{printable(name)} has been changed or damaged: expected SHA-256 {expected}, found {found}")
    more = sorted(name for name in _names(folder) if name not in listed and _READ.fullmatch(name))
    problems += [f"{printable(name)} was added after the export: {SUMS_FILE} does not list it" for name in more]
    return problems, len(listed)


def check_integrity(folder: Path) -> None:
    """Raise ModelFolderError unless all files of a folder are those that were exported."""
    problems, _ = integrity_problems(folder)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelFolderError(f"{folder}: {problems[0]}{more}; copy or download it again, or export the model again")


def _read(path: Path) -> dict[str, str]:
    """Hashes by name."""
    try:
        lines = read_regular(path, SUMS_BYTES, "a list of hashes").decode("utf-8").splitlines()
    except FileNotFoundError:
        raise ModelFolderError(
            f"{path} is missing: the folder was exported without hashes, or it is not complete; export the model again"
        ) from None
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ModelFolderError(f"{path}: expected text in UTF-8; export the model again") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or ".." in Path(match[2]).parts or Path(match[2]).is_absolute() or match[2] in found:
            raise ModelFolderError(f"{path}: line {number}: expected a SHA-256 and the name of a file in the folder")
        found[match[2]] = match[1]
    if "model.onnx" not in found:
        raise ModelFolderError(f"{path}: does not list model.onnx; export the model again")
    return found


def _names(folder: Path) -> Iterator[str]:
    """Files to be listed: in the folder and in its sub-folders (further chat templates), named with slashes."""
    for path in folder.iterdir():
        inside = path.iterdir() if path.is_dir() and not path.is_symlink() else [path]
        for file in inside:
            name = file.relative_to(folder).as_posix()
            if name not in _NOT_LISTED and not name.startswith(".") and not file.is_dir():
                yield name


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, _ANY_SIZE, "a part of the model") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
