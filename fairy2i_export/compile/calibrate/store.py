"""Finished layers of a calibration, one safetensors file per decoder layer, so that an interrupted one can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.codes.native import F32, U8
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_runtime.regular_file import parse_json

_HEAD, _TUNED = "identity.json", "tuned.safetensors"
_LAYERS = "[0-9]*.safetensors"
_ROWS, _NORMS = "rows:", "norms:"


@dataclass(frozen=True)
class Tuned:
    """What tuning (tuning/) found.

    Attributes:
        rows: by module name of a calibrated layer, float32 [2n]: factors on its row multipliers.
        norms: by tensor name, float32: weights of norms that take the place of the (rotated) source's.
    """

    rows: Mapping[str, F32]
    norms: Mapping[str, F32]


class LayerStore:
    """A folder of calibrated layers.

    Args:
        folder: made if it does not exist, and emptied if what lies there belongs to something else.
        identity: of everything that the layers depend on.

    Attributes:
        tuned: what the whole model was tuned to when all layers were there, or None; layers are given with it from then on.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}  # module -> its file
        head = folder / _HEAD
        if not (head.exists() and _holds(head, identity)):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            head.write_text(json.dumps(dict(identity)))
        for path in sorted(folder.glob(_LAYERS)):
            if _is_whole(path):
                self._note(path)
        self.tuned = self._read_tuned()

    def __len__(self) -> int:
        return len(list(self.folder.glob(_LAYERS)))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, index: int) -> dict[str, CalibratedLinear] | None:
        """The calibrated modules of a decoder layer by name, or None if it is not finished."""
        path = self._path(index)
        if not path.exists():
            return None
        return {name: self.linear(name) for name, owner in self._files.items() if owner == path}

    def linear(self, name: str) -> CalibratedLinear:
        """One calibrated module."""
        from safetensors import safe_open

        with safe_open(self._files[name], framework="numpy") as file:
            meta = json.loads(file.metadata()[name])
            codes = _unfold(file.get_tensor(f"{name}.codes"), meta["stages"])
            scales, rows = file.get_tensor(f"{name}.scales"), file.get_tensor(f"{name}.row_multiplier")
        found = QuantizedLinear(codes, scales, "fp32", rows)
        if self.tuned is not None and name in self.tuned.rows:
            found = replace(found, row_multiplier=rows * self.tuned.rows[name])
        return CalibratedLinear(found, meta["weight_sha256"], meta["output_error"])

    def write(self, index: int, linears: Mapping[str, CalibratedLinear]) -> None:
        """Keep the modules of a decoder layer; complete or not at all."""
        tensors, metadata = {}, {}
        for name, linear in linears.items():
            q = linear.quantized
            tensors[f"{name}.codes"] = _fold(q.codes)
            tensors[f"{name}.scales"] = np.ascontiguousarray(q.scales)
            if q.row_multiplier is not None:
                tensors[f"{name}.row_multiplier"] = np.ascontiguousarray(q.row_multiplier)
            metadata[name] = json.dumps(
                {"stages": q.stages, "weight_sha256": linear.weight_sha256, "output_error": linear.output_error}
            )
        path = self._path(index)
        _save(path, tensors, metadata)
        self._note(path)

    def write_tuned(self, tuned: Tuned) -> None:
        """Keep what tuning found, and give layers with it from now on."""
        tensors = {_ROWS + name: array for name, array in tuned.rows.items()}
        tensors |= {_NORMS + name: array for name, array in tuned.norms.items()}
        _save(self.folder / _TUNED, tensors, {})
        self.tuned = tuned

    def _read_tuned(self) -> Tuned | None:
        from safetensors.numpy import load_file

        path = self.folder / _TUNED
        if not path.exists() or not _is_whole(path):
            return None
        found = load_file(path)
        rows, norms = (
            {name.removeprefix(kind): array for name, array in found.items() if name.startswith(kind)}
            for kind in (_ROWS, _NORMS)
        )
        return Tuned(rows, norms)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05}.safetensors"

    def _note(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            self._files.update(dict.fromkeys(file.metadata() or {}, path))


def _save(path: Path, tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> None:
    """A safetensors file, complete or not at all; what the system refuses is an OSError, as elsewhere."""
    from safetensors.numpy import save

    unfinished = path.with_suffix(".new")
    with unfinished.open("wb") as file:
        file.write(save(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())  # before it gets its name, also if the machine loses power
    os.replace(unfinished, path)


def _is_whole(path: Path) -> bool:
    """Whether a file is one; else it is removed, and what was in it is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        path.unlink()
        return False


def _holds(path: Path, identity: Mapping[str, str]) -> bool:
    try:
        return bool(parse_json(path.read_bytes()) == dict(identity))
    except ValueError:
        return False


def _fold(codes: U8) -> U8:
    """Codes of up to four stages in one byte, the first in the lowest bits: uint8 [2, n, m]."""
    folded = np.zeros(codes.shape[1:], np.uint8)
    for stage, plane in enumerate(codes):
        folded |= plane << np.uint8(2 * stage)
    return folded


def _unfold(folded: U8, stages: int) -> U8:
    return np.stack([folded >> np.uint8(2 * stage) & np.uint8(3) for stage in range(stages)])
