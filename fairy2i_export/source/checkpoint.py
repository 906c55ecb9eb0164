"""The source checkpoint: a Hugging Face directory with config.json and single or sharded safetensors.

Opening it reads headers only; tensors are read one at a time. Pickle checkpoints (.bin, .pth) are refused: reading them
needs torch and executes code from the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.safetensors_file import SafetensorsFile, TensorInfo

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HASH_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        directory: where it lies.
        name: what to call it: the directory's name or the hub id.
        config: the parsed config.json.
        files: its safetensors files, sorted by name.
        owners: tensor name -> the file that holds it.
    """

    directory: Path
    name: str
    config: dict[str, Any]
    files: tuple[SafetensorsFile, ...]
    owners: dict[str, SafetensorsFile]

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.owners

    def info(self, tensor: str) -> TensorInfo:
        """Shape, dtype and place of a tensor.

        Raises:
            CheckpointError: if the checkpoint has no such tensor.
        """
        if tensor not in self.owners:
            raise CheckpointError(
                f"{self.directory}: tensor {tensor} is missing (the checkpoint has {len(self.owners)} tensors); "
                "it is incomplete or not of the architecture its config.json names"
            )
        return self.owners[tensor].tensors[tensor]

    def read(self, tensor: str) -> npt.NDArray[Any]:
        """Read one tensor in its stored dtype.

        Raises:
            CheckpointError: missing tensor, unreadable dtype or truncated file.
        """
        self.info(tensor)
        return self.owners[tensor].read(tensor)

    def weight_bytes(self) -> int:
        """Size of all safetensors files."""
        return sum(file.path.stat().st_size for file in self.files)

    def hashed_files(self) -> list[Path]:
        """The files that :meth:`sha256` covers, sorted by name."""
        return sorted([self.directory / "config.json", *(file.path for file in self.files)], key=lambda path: path.name)

    def sha256(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Hash of the checkpoint's config.json and safetensors files.

        SHA-256 over one line per file, sorted by name: name, size and SHA-256 of the contents, separated by tabs.

        Args:
            advance: called with the number of bytes read since the last call.
        """
        contents = {}
        for path in self.hashed_files():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
                    advance(len(chunk))
            contents[path.name] = digest.hexdigest()
        return self.sha256_of(contents)

    def sha256_of(self, contents: Mapping[str, str]) -> str:
        """:meth:`sha256` from hashes that are known: file name -> SHA-256 in hex; files that are not named are read."""
        total = hashlib.sha256()
        for path in self.hashed_files():
            found = contents.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.name}\t{path.stat().st_size}\t{found}\n".encode())
        return total.hexdigest()


def open_checkpoint(directory: Path, name: str | None = None) -> Checkpoint:
    """Open a local checkpoint directory.

    Args:
        directory: holds config.json and the safetensors files.
        name: what to call it in the exported model; the directory's name by default.

    Raises:
        CheckpointError: missing or unreadable files, pickle files only, a damaged index, a missing or truncated shard.
    """
    if not directory.exists():
        raise CheckpointError(
            f"{directory}: no such file or directory; expected a Hugging Face checkpoint directory or a hub id"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; expected the directory that holds config.json and *.safetensors")
    config = read_json(directory / "config.json")
    owners: dict[str, SafetensorsFile] = {}
    if (directory / _INDEX).exists():
        files = _open_shards(directory, owners)
    elif (directory / _SINGLE).exists():
        files = [SafetensorsFile(directory / _SINGLE)]
        owners.update(dict.fromkeys(files[0].tensors, files[0]))
    else:
        raise CheckpointError(_no_weights_message(directory))
    return Checkpoint(directory, name or directory.resolve().name, config, tuple(files), owners)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; expected a Hugging Face checkpoint directory") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _open_shards(directory: Path, owners: dict[str, SafetensorsFile]) -> list[SafetensorsFile]:
    index = directory / _INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    for tensor, shard in weight_map.items():
        # a name with path parts could point at any file of the machine
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {tensor}: expected the name of a .safetensors file beside it, got {shard!r}"
            )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}; download them"
        )
    files = {name: SafetensorsFile(directory / name) for name in names}
    for tensor, shard in weight_map.items():
        if tensor not in files[shard].tensors:
            raise CheckpointError(f"{index}: says that {shard} holds tensor {tensor}, but it does not; download both again")
        owners[tensor] = files[shard]
    return list(files.values())


def _no_weights_message(directory: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory}: only pickle weights ({', '.join(pickles[:3])}), which can execute code when read; expected "
            "safetensors. Convert once with transformers: AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(NEW, "
            "safe_serialization=True)"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        return f"{directory}: found {', '.join(others[:3])} but neither {_SINGLE} nor {_INDEX}; the checkpoint is incomplete"
    return f"{directory}: no weights; expected {_SINGLE} or {_INDEX} with its shards"
