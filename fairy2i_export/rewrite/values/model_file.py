"""Open an ONNX file: the graph now, the weights when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fairy2i_export.codes.layout import PACKER_REVISION
from fairy2i_export.codes.quantizer import QUANTIZER_REVISION
from fairy2i_export.errors import ModelError
from fairy2i_export.onnx_graph.operator import OPSET
from fairy2i_runtime.version import __version__

_HASH_CHUNK = 1 << 22


def open_model(path: Path) -> tuple[ir.Model, int]:
    """The model, and the version of the standard operators it uses.

    Raises:
        ModelError: no such file, no ONNX model, an operator set older than 18, or external data missing or too short.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {what}; expected an ONNX model")
    try:
        model = ir.load(path)
    except Exception as error:  # the parser's exceptions have no common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path}: cannot be read as an ONNX model ({reason}); is the file complete?") from error
    opset = model.graph.opset_imports.get("") or model.graph.opset_imports.get("ai.onnx")
    if opset is None:
        raise ModelError(f"{path}: imports no standard ONNX operators; expected an ONNX model of opset {OPSET} or newer")
    if opset < OPSET:
        raise ModelError(
            f"{path}: opset {opset} is too old: the operator's definition needs opset {OPSET} or newer. Export the model "
            f"again with opset_version={OPSET}, or convert it: onnx.version_converter.convert_version(model, {OPSET})"
        )
    for tensor in external_tensors(model):
        _check_external(tensor, path)
    return model, opset


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All initializers that lie in other files."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    location = Path(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise ModelError(
            f"{path}: tensor {tensor.name}: its external data lies at {location}, outside the model's folder; "
            "expected a file beside the model"
        )
    file = path.parent / location
    if not file.is_file():
        raise ModelError(
            f"{path}: tensor {tensor.name}: its external data file {location} is missing; put it beside the model"
        )
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    size = file.stat().st_size
    if size < end:
        raise ModelError(
            f"{file}: has {size:,} bytes, but tensor {tensor.name} ends at byte {end:,}; the file is incomplete, "
            "copy it again"
        )


def model_files(path: Path, model: ir.Model) -> list[Path]:
    """The model file and its external data files, sorted by name."""
    return sorted({path, *(path.parent / tensor.location for tensor in external_tensors(model))}, key=lambda file: file.name)


def files_identity(files: list[Path], options: Mapping[str, Any]) -> dict[str, str]:
    """What a rewrite is made from and with, for its journal; the contents of files count by size and time of change."""
    stated = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {
        "tool": __version__,
        "codes": f"quantizer {QUANTIZER_REVISION}, packer {PACKER_REVISION}",
        "source": hashlib.sha256(json.dumps(stated).encode()).hexdigest(),
        "options": json.dumps(dict(options), sort_keys=True, default=str),
    }


def files_sha256(files: list[Path], advance: Callable[[int], None]) -> str:
    """SHA-256 over one line per file: name, size and SHA-256 of the contents, separated by tabs (as for checkpoints)."""
    total = hashlib.sha256()
    for file in files:
        contents = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                contents.update(chunk)
                advance(len(chunk))
        total.update(f"{file.name}\t{file.stat().st_size}\t{contents.hexdigest()}\n".encode())
    return total.hexdigest()
