"""The source checkpoint: a Hugging Face directory with config.json and single or sharded safetensors.

Opening it reads headers only; tensors are read one at a time. Pickle checkpoints (.bin, .pth) are refused: reading them
needs torch and executes code from the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.decoder.architectures import pairs_in
from fairy2i_export.decoder.pairs import Pair, find_pairs, pair_of
from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.files import check_files, open_weights_file
from fairy2i_export.source.json_file import read_json
from fairy2i_export.source.refusals.other_folders import file_message, what_else_it_is
from fairy2i_export.source.refusals.tensor_names import check_names, missing_message
from fairy2i_export.source.safetensors_file import SafetensorsFile, TensorInfo
from fairy2i_export.source.weight_files import open_weights

__all__ = ["Checkpoint", "open_checkpoint", "read_json"]

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
        notes: which other weights lie there and are not read, a sentence each.
        pairs: tensors that are stored as two and count as one, by the name of the one.
    """

    directory: Path
    name: str
    config: dict[str, Any]
    files: tuple[SafetensorsFile, ...]
    owners: dict[str, SafetensorsFile]
    notes: tuple[str, ...] = ()
    pairs: Mapping[str, Pair] = field(default_factory=dict)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.owners or tensor in self.pairs

    def info(self, tensor: str) -> TensorInfo:
        """Shape, dtype and place of a tensor; of a pair the place of its first part.

        Raises:
            CheckpointError: if the checkpoint has no such tensor.
        """
        if (pair := self.pairs.get(tensor)) is not None:
            first = self.info(pair.real)
            shape = tuple(2 * size if axis == pair.axis else size for axis, size in enumerate(first.shape))
            return replace(first, shape=shape, size=2 * first.size)
        if tensor not in self.owners:
            pair = pair_of(pairs_in(self.config), tensor)
            stored = tensor if pair is None else pair.real
            raise CheckpointError("; ".join([missing_message(self.directory, stored, self.owners), *self.notes]))
        return self.owners[tensor].tensors[tensor]

    def matrix_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of the real matrix that a weight stands for: its own, but for those of layers ``y = W conj(x)``."""
        shape = self.info(tensor).shape
        pair = self.pairs.get(tensor)
        return (shape[0], 2 * shape[1]) if pair is not None and pair.conjugate else shape

    def stored(self, tensor: str) -> tuple[str, ...]:
        """The tensors that are read for one: both parts of a pair, else itself."""
        pair = self.pairs.get(tensor)
        return (tensor,) if pair is None else pair.parts

    def words(self, tensor: str) -> str:
        """What to call a tensor in messages: as it is stored."""
        pair = self.pairs.get(tensor)
        return tensor if pair is None else pair.words

    def join(self, tensor: str, parts: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """A pair as one array, in the dtype that it is stored in; ``parts`` by their names."""
        pair = self.pairs[tensor]
        return np.concatenate([parts[pair.real], parts[pair.imag]], axis=pair.axis)

    def read(self, tensor: str) -> npt.NDArray[Any]:
        """Read one tensor in its stored dtype.

        Raises:
            CheckpointError: missing tensor, unreadable dtype or truncated file.
        """
        if tensor in self.pairs:
            return self.join(tensor, {part: self.read(part) for part in self.stored(tensor)})
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
            contents[path.name] = _sha256(path, advance)
        return self.sha256_of(contents)

    def sha256_of(self, contents: Mapping[str, str]) -> str:
        """:meth:`sha256` from hashes that are known: file name -> SHA-256 in hex; files that are not named are read."""
        total = hashlib.sha256()
        for path in self.hashed_files():
            found = contents.get(path.name) or _sha256(path)
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
        raise CheckpointError(file_message(directory))
    if not (directory / "config.json").exists() and (known := what_else_it_is(directory)) is not None:
        raise CheckpointError(known)
    check_files(directory)
    config = read_json(directory / "config.json")
    weights = open_weights(directory, config)
    check_names(directory, config, weights.owners)
    pairs = _pairs(directory, config, weights.owners)
    name = name or directory.resolve().name
    return Checkpoint(directory, name, config, weights.files, weights.owners, weights.notes, pairs)


def _pairs(directory: Path, config: dict[str, Any], owners: Mapping[str, SafetensorsFile]) -> dict[str, Pair]:
    """The complex tensors of a checkpoint, by the names that they have when they are one.

    Raises:
        CheckpointError: a tensor without its other part, or two that do not fit.
    """
    pairs = find_pairs(pairs_in(config), owners)
    for pair in pairs.values():
        for name, other in (pair.parts, pair.parts[::-1]):
            if name not in owners:
                raise CheckpointError(
                    f"{directory}: tensor {name} is missing, and {other}, the other part of the same complex tensor, is there; the "
                    "checkpoint is incomplete"
                )
        real, imag = (owners[name].tensors[name] for name in pair.parts)
        if (real.shape, real.dtype) != (imag.shape, imag.dtype):
            raise CheckpointError(
                f"{directory}: expected the two parts of a complex tensor to be alike, found {pair.real} {real.dtype} "
                f"{list(real.shape)} and {pair.imag} {imag.dtype} {list(imag.shape)}"
            )
        if len(real.shape) != (2 if pair.is_matrix else 1):
            what = "a matrix" if pair.is_matrix else "a vector"
            raise CheckpointError(f"{directory}: tensor {pair.real}: expected {what}, found shape {list(real.shape)}")
    return pairs


def _sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    digest = hashlib.sha256()
    with open_weights_file(path) as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
