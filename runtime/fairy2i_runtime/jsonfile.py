"""Read the JSON files of a model folder, with errors that say what is wrong where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairy2i_runtime.errors import ModelFolderError
from fairy2i_runtime.regular_file import NestingError, read_json_value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        ModelFolderError: if the file is missing or unreadable, no regular file, too large, no JSON, nested too deeply, or not
            an object.
    """
    try:
        value = read_json_value(path)
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing: the folder is not a complete export; export the model again") from None
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    except NestingError as error:
        raise ModelFolderError(f"{path}: {error}; restore it, or export the model again") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ModelFolderError(f"{path} is not valid JSON ({error}); restore it, or export the model again") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: expected a JSON object, found a {type(value).__name__}; export the model again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, empty if there is no such file.

    Raises:
        ModelFolderError: as :func:`read_json`, but for a missing file.
    """
    return read_json(path) if path.exists() else {}
