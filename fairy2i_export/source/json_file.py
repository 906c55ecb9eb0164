"""Reading the JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.files import read_value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, unreadable, no regular file, too large, a link out of its folder, nested too
            deeply, or holds something else.
    """
    try:
        value = read_value(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; expected a Hugging Face checkpoint directory") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
