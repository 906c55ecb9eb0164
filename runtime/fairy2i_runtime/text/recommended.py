"""What a model's generation_config.json says about sampling."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, OptionError, check_path
from fairy2i_runtime.folder import GENERATION_FILE
from fairy2i_runtime.jsonfile import read_optional_json
from fairy2i_runtime.text.sampling import SamplingOptions

_CHOICE = ("temperature", "top_k", "top_p")  # mean something only where tokens are drawn
_NAMES = (*_CHOICE, "repetition_penalty")
_UNSTATED = {"temperature": 1.0, "top_k": 50}  # what transformers takes for a model that samples and does not say
_SENSIBLE = {"temperature": (0, 10), "repetition_penalty": (0.1, 10)}  # beyond it a model writes noise


def recommended_sampling(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of :class:`~fairy2i_runtime.text.sampling.SamplingOptions` by what generation_config.json recommends.

    ``do_sample`` says whether tokens are drawn; where it is missing, they are if anything is said about how. The file's values
    mean what they mean in transformers, unstated ones included. Empty if there is no file or it says nothing of it. What is no
    value for an option is left out, with a warning.

    Raises:
        ModelFolderError: if there is no such folder, or the file is damaged.
        OptionError: if it is no path.
    """
    path = Path(check_path("folder", folder)) / GENERATION_FILE
    if not path.parent.is_dir():
        raise ModelFolderError(f"model folder {path.parent}: expected a folder, found {_found(path.parent)}")
    config = read_optional_json(path)
    stated = {name: config[name] for name in _NAMES if config.get(name) is not None and _is_usable(name, config[name], path)}
    sampled = config.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        _warn(path, "do_sample", "true or false", sampled)
        sampled = None
    if sampled is None:
        sampled = True if any(name in stated for name in _CHOICE) else None
    if sampled:
        return {**_UNSTATED, **stated}
    penalty = {name: value for name, value in stated.items() if name not in _CHOICE}
    return penalty if sampled is None else {"temperature": 0.0, **penalty}


def _found(path: Path) -> str:
    return "a file" if path.exists() else "nothing there"


def _is_usable(name: str, value: Any, path: Path) -> bool:
    try:
        SamplingOptions(**{name: value})
    except OptionError as error:
        _warn(path, name, str(error).partition("expected ")[2].rpartition(", got")[0], value)
        return False
    low, high = _SENSIBLE.get(name, (value, value))
    if not low <= value <= high:
        _warn(path, name, f"{low} to {high}", value)
        return False
    return True


def _warn(path: Path, name: str, expected: str, value: Any) -> None:
    warnings.warn(f"{path}: {name}: expected {expected}, found {value!r}: it is ignored", Fairy2iWarning, stacklevel=2)
