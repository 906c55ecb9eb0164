"""A model folder: which file is the model, how long its context is, which tokens end a text."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, check_option, check_path
from fairy2i_runtime.jsonfile import read_json, read_optional_json

CONFIG_FILE = "genai_config.json"
REWRITE_FILE = "rewrite.json"
GENERATION_FILE = "generation_config.json"
KERNEL_VARIABLE = "FAIRY2I_KERNEL"
KERNEL_ENTRY = "fairy2i.kernel"  # of a session's configuration
ISA_VARIABLE = "FAIRY2I_ISA"
ISA_ENTRY = "fairy2i.isa"
LOGITS_TO_KEEP = "num_logits_to_keep"  # input of a decoder: logits of so many last tokens are wanted; 0, its default: of all
LIBRARY_ENTRY = "custom_ops_library"  # of genai_config.json: the name of the operator library, where a model needs it
MAX_CONTEXT = 1 << 24  # no model comes near it: a larger number is damage


@dataclass(frozen=True)
class ModelFolder:
    """What the files beside the model say about it.

    Attributes:
        path: the folder.
        model_file: the .onnx file in it.
        context_length: the most tokens the model was built for.
        eos_ids: tokens that end a text, from genai_config.json and generation_config.json together.
        needs_library: whether the model has operators of the operator library, as genai_config.json says.
        vocab_size: rows of the model's embedding; None if genai_config.json does not say.
        kernel: the kernel to run unless somebody chooses another, as genai_config.json says, or None. An exporter that found
            the default kernel too coarse for this model writes it there, for every host.
    """

    path: Path
    model_file: Path
    context_length: int
    eos_ids: frozenset[int]
    needs_library: bool = True
    vocab_size: int | None = None
    kernel: str | None = None

    def kernel_to_run(self, asked: str | None) -> str | None:
        """What was asked for, else what FAIRY2I_KERNEL says (None: the library reads it), else the folder's own choice."""
        if asked is not None or os.environ.get(KERNEL_VARIABLE):
            return asked
        return self.kernel if self.needs_library else None


def open_folder(folder: str | os.PathLike[str]) -> ModelFolder:
    """Read the configuration of a folder written by fairy2i-export.

    Raises:
        ModelFolderError: if the folder or a file in it is missing or damaged.
        OptionError: if it is no path.
    """
    path = Path(check_path("folder", folder))
    rewritten = path.parent if path.is_file() and path.suffix == ".onnx" else path
    if is_rewritten(rewritten):
        raise ModelFolderError(
            f"{path} is a rewritten ONNX model ({REWRITE_FILE}) and has no {CONFIG_FILE}: run it with onnxruntime, look at it "
            f"with fairy2i inspect {rewritten / 'model.onnx'}"
        )
    if path.is_file():
        hint = f"; try {path.parent}" if (path.parent / CONFIG_FILE).is_file() else ""
        raise ModelFolderError(f"{path} is a file: expected the folder with {CONFIG_FILE}{hint}")
    if not path.is_dir():
        raise ModelFolderError(f"model folder {path} does not exist; fairy2i-export SOURCE -o {path} makes one")
    config_path = path / CONFIG_FILE
    if not config_path.is_file():
        hint = (
            "it holds a checkpoint to be exported first (fairy2i-export)"
            if (path / "config.json").is_file()
            else "wrong folder?"
        )
        raise ModelFolderError(f"{path} is not a model folder: it has no {CONFIG_FILE}; {hint}")
    model = read_json(config_path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
        raise ModelFolderError(
            f"{config_path}: expected an object model with an object decoder in it; export the model again"
        )
    name = model["decoder"].get("filename", "model.onnx")
    if not isinstance(name, str) or Path(name).name != name:
        raise ModelFolderError(
            f"{config_path}: model.decoder.filename: expected the name of a file in the folder, got {name!r}"
        )
    model_file = path / name
    if not os.path.isfile(model_file):  # Path.is_file() raises for a name that is too long
        raise ModelFolderError(f"{model_file} is missing: the folder is not a complete export; export the model again")
    context = model.get("context_length")
    if not isinstance(context, int) or isinstance(context, bool) or not 1 <= context <= MAX_CONTEXT:
        raise ModelFolderError(f"{config_path}: model.context_length: expected 1 to {MAX_CONTEXT}, got {context!r}")
    generation_path = path / GENERATION_FILE
    size = model.get("vocab_size")
    rows = size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
    eos = _token_ids(model.get("eos_token_id"), config_path, "model.eos_token_id", rows)
    generation = read_optional_json(generation_path)
    eos |= _token_ids(generation.get("eos_token_id"), generation_path, "eos_token_id", rows)
    session = model["decoder"].get("session_options")
    needs_library = isinstance(session, dict) and LIBRARY_ENTRY in session
    kernel = session.get(KERNEL_ENTRY) if isinstance(session, dict) else None
    if kernel is not None and not isinstance(kernel, str):
        raise ModelFolderError(
            f"{config_path}: model.decoder.session_options.{KERNEL_ENTRY}: expected a name, got {kernel!r}"
        )
    return ModelFolder(path, model_file, context, eos, needs_library, rows, kernel)


def is_rewritten(folder: Path) -> bool:
    """Whether fairy2i-export made a folder of an ONNX model: it has no configuration for a text generator."""
    return (folder / REWRITE_FILE).is_file() and not (folder / CONFIG_FILE).is_file()


def chosen_context_length(wanted: int | None, folder: ModelFolder) -> int:
    """The context to use: the model's own, or a shorter one.

    Raises:
        OptionError: if ``wanted`` is less than 1 or more than the model was built for.
    """
    if wanted is None:
        return folder.context_length
    most = folder.context_length
    expected = f"1 to {most} (what the model was built for)"
    check_option("context_length", wanted, Integral, lambda length: 1 <= length <= most, expected)
    return int(wanted)


def _token_ids(value: Any, path: Path, key: str, rows: int | None) -> frozenset[int]:
    """Token ids that may be absent, one number or a list; numbers that are no tokens of the model are left out, with a warning."""
    found = set()
    for token in [] if value is None else value if isinstance(value, list) else [value]:
        if not isinstance(token, int | float):
            raise ModelFolderError(f"{path}: {key}: expected a token id or a list of them, got {value!r}")
        if isinstance(token, int) and not isinstance(token, bool) and token >= 0 and (rows is None or token < rows):
            found.add(token)
        else:
            expected = f"token ids from 0 to {rows - 1}" if rows else "token ids"
            message = f"{path}: {key}: expected {expected}, found {token!r}, which is ignored"
            warnings.warn(message, Fairy2iWarning, stacklevel=3)
    return frozenset(found)
