"""Which files of a checkpoint folder hold its weights: those that transformers would load, where several sets lie there.

Its order: what config.json names as ``transformers_weights``, model.safetensors, the shards of model.safetensors.index.json. All
tensors of the shards that the index names count, whether it names them or not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.json_file import read_json
from fairy2i_export.source.refusals.other_folders import no_weights_message
from fairy2i_export.source.safetensors_file import SafetensorsFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_EXPLICIT = "transformers_weights"  # key of config.json
_OTHERS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "*.gguf")  # globs of weights that may lie beside


@dataclass(frozen=True)
class Weights:
    """Opened weights of a folder.

    Attributes:
        files: sorted by name.
        owners: tensor name -> the file that holds it.
        notes: what else lies there and is not read, a sentence each.
    """

    files: tuple[SafetensorsFile, ...]
    owners: dict[str, SafetensorsFile]
    notes: tuple[str, ...]


def open_weights(directory: Path, config: Mapping[str, Any] | None = None) -> Weights:
    """Open the headers of the safetensors files that transformers would load from a folder.

    Args:
        directory: of the checkpoint.
        config: its parsed config.json, if it has one.

    Raises:
        CheckpointError: there are none, or they are damaged or incomplete.
    """
    name = _chosen(directory, config or {})
    if name.endswith(".index.json"):
        files, owners = _open_shards(directory / name)
    else:
        files = [_open_single(directory, name)]
        owners = dict.fromkeys(files[0].tensors, files[0])
    return Weights(tuple(files), owners, _notes(directory, name, {file.path.name for file in files}))


def _chosen(directory: Path, config: Mapping[str, Any]) -> str:
    """Name of the file, or of the index."""
    explicit = config.get(_EXPLICIT)
    if explicit is not None:
        endings = (".safetensors", ".safetensors.index.json")
        if not isinstance(explicit, str) or not _is_plain(explicit) or not explicit.endswith(endings):
            raise CheckpointError(
                f"{directory / 'config.json'}: {_EXPLICIT}: expected the name of a file {' or '.join(endings)} beside it, got "
                f"{explicit!r}"
            )
        if not os.path.isfile(directory / explicit):  # Path.is_file() raises for a name that is too long
            raise CheckpointError(f"{directory / explicit}: missing; config.json names it as {_EXPLICIT}")
        return explicit
    for name in (SINGLE, INDEX):
        if (directory / name).exists():
            return name
    raise CheckpointError(no_weights_message(directory, SINGLE, INDEX))


def _is_plain(name: str) -> bool:
    """Whether it has no path parts, with which it could point at any file of the machine."""
    return Path(name).name == name and "\\" not in name


def _open_single(directory: Path, name: str) -> SafetensorsFile:
    try:
        return SafetensorsFile(directory / name)
    except CheckpointError as error:
        shards = _shards_named(directory / INDEX)
        if not shards or not all(os.path.isfile(directory / shard) for shard in shards):
            raise
        raise CheckpointError(
            f"{error}; or, if the {len(shards)} shards of {INDEX} are the ones to read, move {name} away: it comes first, as in "
            "transformers"
        ) from error


def _open_shards(index: Path) -> tuple[list[SafetensorsFile], dict[str, SafetensorsFile]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {tensor}: expected the name of a .safetensors file beside it, got {shard!r}"
            )
    directory, names = index.parent, sorted(set(weight_map.values()))
    missing = [name for name in names if not os.path.exists(directory / name)]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}; download them"
        )
    files = {name: SafetensorsFile(directory / name) for name in names}
    owners = {tensor: file for file in files.values() for tensor in file.tensors}
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].tensors:
            raise CheckpointError(f"{index}: says that {shard} holds tensor {tensor}, but it does not; download both again")
        if owners[tensor] is not files[shard]:
            raise CheckpointError(
                f"{directory}: tensor {tensor} lies in {shard}, as {INDEX} says, and in {owners[tensor].path.name} too, which "
                "transformers would read: these shards are of two models, download them again into an empty folder"
            )
    return list(files.values()), owners


def _shards_named(index: Path) -> list[str]:
    """Names of the shards of an index; empty if there is none that can be read."""
    try:
        return sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
    except (CheckpointError, KeyError, AttributeError):
        return []


def _notes(directory: Path, chosen: str, read: set[str]) -> tuple[str, ...]:
    notes = []
    others = sorted({path.name for glob in _OTHERS for path in directory.glob(glob)} - read)
    if chosen != INDEX and (directory / INDEX).is_file():
        shards = _shards_named(directory / INDEX)
        there = [shard for shard in shards if os.path.isfile(directory / shard) and shard not in read]
        others = [name for name in others if name not in there]
        what = "the shards of" if len(there) == len(shards) > 0 else "the left-over"
        notes.append(f"{directory}: read is {chosen}, as transformers does, and not {what} {INDEX}, which lies there too")
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        notes.append(f"{directory}: read is {chosen}, as transformers does; also there, and not read: {shown}")
    return tuple(notes)
