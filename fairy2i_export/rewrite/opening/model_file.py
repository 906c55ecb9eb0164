"""Open an ONNX file: the graph now, checked and whole, the weights when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from fairy2i_export.errors import ModelError, reason_of
from fairy2i_export.onnx_graph.operator import OPSET
from fairy2i_export.rewrite.opening.fields import field_problem
from fairy2i_export.rewrite.opening.normal import Normal
from fairy2i_export.rewrite.opening.scopes import Scopes
from fairy2i_export.rewrite.opening.sparse import Sparse
from fairy2i_export.rewrite.opening.tensors import is_external, place_of, tensor_problem
from fairy2i_export.rewrite.opening.walk import Spot, spots

_HASH_CHUNK = 1 << 22
_LARGEST = (1 << 31) - 1  # bytes that protobuf reads


@dataclass(frozen=True)
class Opened:
    """A model to be rewritten.

    Attributes:
        model: whole: nothing of the file is missing in it, all its names are known, nodes come in an order they can run in.
        opset: version of the standard operators it uses.
        files: the model file and every file that any of its tensors lies in, sorted by name.
    """

    model: ir.Model
    opset: int
    files: list[Path]


def open_model(path: Path) -> Opened:
    """Read and check a model.

    Raises:
        ModelError: no such file, no ONNX model, an operator set older than 18, external data missing or too short, names that
            nothing makes, tensors without their data, or anything that could not be carried over.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {what}; expected an ONNX model")
    if (size := path.stat().st_size) > _LARGEST:
        raise ModelError(
            f"{path}: has {size:,} bytes, and ONNX files at most {_LARGEST:,}: larger weights lie beside the model"
        )
    proto = _parse(path)
    opset = _opset(proto, path)
    found = list(spots(proto))
    for spot in found:
        if problem := field_problem(spot):
            raise ModelError(f"{path}: {spot}: {problem}")
    files = _check_tensors(found, path)
    normal = Normal(proto, found, path)
    scopes = Scopes().look(proto)
    if scopes.problem:
        raise ModelError(f"{path}: {scopes.problem}")
    model = _deserialize(proto, path)
    normal.fill(model)
    if not scopes.sorted:
        _sort(model, path)
    return Opened(model, opset, files)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # the parser's exceptions have no common base
        raise ModelError(f"{path}: cannot be read as an ONNX model ({reason_of(error)}); is the file complete?") from error


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # likewise; what is known to go wrong was found before
        raise ModelError(f"{path}: cannot be read as an ONNX model ({reason_of(error)}); is it damaged?") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def _opset(proto: onnx.ModelProto, path: Path) -> int:
    versions = {item.domain: item.version for item in proto.opset_import}
    opset = versions.get("") or versions.get("ai.onnx")
    if opset is None:
        raise ModelError(f"{path}: imports no standard ONNX operators; expected an ONNX model of opset {OPSET} or newer")
    if opset < OPSET:
        raise ModelError(
            f"{path}: opset {opset} is too old: the operator's definition needs opset {OPSET} or newer. Export the model "
            f"again with opset_version={OPSET}, or convert it: onnx.version_converter.convert_version(model, {OPSET})"
        )
    return int(opset)


def _check_tensors(found: list[Spot], path: Path) -> list[Path]:
    """All files of the model; every tensor, wherever it is, must have its data."""
    files = {path}
    for spot in found:
        if spot.kind == "TensorProto":
            if problem := tensor_problem(spot.message, path.parent):
                raise ModelError(f"{path}: {spot}: {problem}")
            if is_external(spot.message):
                files.add(place_of(spot.message, path.parent).file)
    for spot in found:
        if spot.kind == "SparseTensorProto" and (problem := Sparse(spot.message, path.parent).problem()):
            raise ModelError(f"{path}: {spot}: {problem}")
    return sorted(files, key=lambda file: (file.name, str(file)))


def _sort(model: ir.Model, path: Path) -> None:
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise ModelError(f"{path}: its nodes wait for each other in a circle; the model is damaged") from error


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
