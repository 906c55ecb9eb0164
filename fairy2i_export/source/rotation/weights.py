"""The tensors of a checkpoint after its rotations are absorbed: in float32, computed in float64, a block at a time.

The norms whose weights are folded into the layers behind them become ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import WeightError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.rotation.choice import RotationChoice
from fairy2i_export.source.rotation.transform import F64, Rotation

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
# calls a function for each item and gives its results in their order: ``map``, or one that has threads
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
_BLOCK = 1 << 15  # values at a time: what is done to them stays in a processor's cache


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor; any of it may be absent.

    Attributes:
        scale: float64 [columns], the norm that is folded into them.
        columns: rotation along a row.
        rows: rotation along a column, of the rows from ``first`` on.
        first: see ``rows``.
        value: what all entries become.
    """

    scale: F64 | None = None
    columns: Rotation | None = None
    rows: Rotation | None = None
    first: int = 0
    value: float | None = None

    @property
    def row_by_row(self) -> bool:
        """Whether a row of the result depends on that row of the tensor alone."""
        return self.rows is None

    def whole(self, array: Array, each: Each = map) -> F32:
        """The tensor [rows, columns] or [rows]."""
        if array.ndim == 1:
            return self.part(array, slice(0, len(array)))
        made = np.empty(array.shape, np.float32)

        def fill(part: tuple[slice, slice]) -> None:
            made[part] = self._block(array[part], *part)

        for _ in each(fill, self._blocks(*array.shape)):
            pass
        return made

    def part(self, array: Array, rows: slice) -> F32:
        """Some rows of a tensor that changes row by row, or all of a vector."""
        if array.ndim == 1:
            return self._vector(array[rows]).astype(np.float32)
        if not self.row_by_row:
            raise AssertionError("rows of this tensor are mixed")
        found = self._block(array[rows], rows, slice(0, array.shape[1]))
        return np.ascontiguousarray(found, np.float32)

    def _vector(self, array: Array) -> F64:
        wide = array.astype(np.float64)
        if self.value is not None:
            wide[:] = self.value
        if self.rows is not None:
            wide[self.first :] = self.rows.apply_to_columns(wide[self.first :])
        return wide

    def _blocks(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Blocks that can be computed by themselves."""
        across = 1 if self.columns is None else self.columns.size
        along = 1 if self.rows is None else self.rows.size
        if across == width:  # whole rows
            parts = [(0, self.first, 1), (self.first, height, along)]
            for begin, end, unit in parts:
                step = unit * max(1, _BLOCK // (unit * width))
                yield from ((slice(at, min(at + step, end)), slice(0, width)) for at in range(begin, end, step))
        else:
            step = across * max(1, _BLOCK // (across * height))
            yield from ((slice(0, height), slice(at, min(at + step, width))) for at in range(0, width, step))

    def _block(self, array: Array, rows: slice, columns: slice) -> F64:
        found = array.astype(np.float64)
        if self.scale is not None:
            found *= self.scale[columns]
        if self.columns is not None:
            found = self.columns.part(columns.start, columns.stop).apply(found)
        if self.rows is not None and rows.stop > self.first:
            first = max(self.first, rows.start)
            rotation = self.rows.part(first - self.first, rows.stop - self.first)
            below = rotation.apply_to_columns(found[first - rows.start :])
            found = np.concatenate([found[: first - rows.start], below])
        return found


@dataclass(frozen=True)
class _Role:
    """What a module does in the decoder.

    Attributes:
        layer: number of its decoder layer, or None.
        norm: the one in front of it.
        columns: what its columns belong to.
        rows: what its rows, or the last of them, belong to.
    """

    layer: int | None = None
    norm: str | None = None
    columns: Literal["residual", "heads", ""] = ""
    rows: Literal["residual", "heads", ""] = ""


class RotatedWeights:
    """What becomes of the tensors of a checkpoint, by the modules that use them: a tied embedding has two.

    Args:
        checkpoint: the source.
        decoder: its description.
        choice: what is rotated.
    """

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, choice: RotationChoice) -> None:
        self.checkpoint = checkpoint
        self.choice = choice
        self._decoder = decoder
        self._residual = choice.residual_rotation(decoder)
        self._roles = dict(_roles(decoder))
        self._folded = {role.norm for role in self._roles.values() if role.norm is not None and choice.residual}

    @property
    def unties(self) -> bool:
        """Whether embedding and lm_head are no longer the same matrix, even where the source ties them."""
        return self.choice.residual

    def change(self, module: str, key: str = "weight") -> Change | None:
        """What becomes of the tensor ``module.key``; None: nothing. A tied lm_head has the embedding's tensor under its own name.

        Raises:
            WeightError: the norm that is folded into it is not finite.
            CheckpointError: it cannot be read.
        """
        if module in self._folded:
            return Change(value=1.0 - self._decoder.norm_offset)
        role, decoder = self._roles.get(module, _Role()), self._decoder
        heads = None if role.layer is None else self.choice.head_rotations(decoder, role.layer)
        outputs, inputs = heads if heads is not None else (None, None)
        columns = {"residual": self._residual, "heads": inputs, "": None}[role.columns]
        rows = {"residual": self._residual, "heads": outputs, "": None}[role.rows]
        first = 0
        if role.rows == "heads" and decoder.names.qkv is not None:  # queries and keys come before values
            first = (decoder.heads + decoder.kv_heads) * decoder.head_dim
        if key == "bias":
            columns = scale = None
        else:
            scale = self._scale(role.norm)
        return Change(scale, columns, rows, first) if columns is not None or rows is not None else None

    def read(self, module: str, key: str = "weight", tensor: str = "") -> F32:
        """A whole tensor in float32, changed.

        Args:
            module: that uses it.
            key: weight or bias.
            tensor: its name in the checkpoint, if that is not ``module.key``.

        Raises:
            CheckpointError: missing tensor, unreadable dtype or truncated file.
            WeightError: see :meth:`change`.
        """
        return changed(self.checkpoint.read(tensor or f"{module}.{key}"), self.change(module, key))

    def folded_norm(self, module: str) -> str | None:
        """The norm that is folded into a module, or None."""
        norm = self._roles.get(module, _Role()).norm
        return norm if norm in self._folded else None

    def turn(self, module: str) -> F32:
        """What lies between a tied embedding and a reader of the residual stream that has the same matrix, both rotated.

        With E the embedding, g the norm that folds into the reader and R the rotation, the one becomes E R, the other
        E diag(g) R = (E R) (R^T diag(g) R): the last factor, symmetric, float32 [hidden, hidden].
        """
        scale = self._scale(self.folded_norm(module))
        if scale is None or self._residual is None:
            raise AssertionError(f"{module}: nothing is folded into it")
        return self._residual.apply(self._residual.apply_to_columns(np.diag(scale))).astype(np.float32)

    def _scale(self, norm: str | None) -> F64 | None:
        """The weights of a norm that is folded, as it multiplies by them."""
        if norm not in self._folded:
            return None
        weight = self.checkpoint.read(f"{norm}.weight").astype(np.float64)
        if not np.isfinite(weight).all():
            raise WeightError(f"{norm}.weight: a value is not finite; the checkpoint is damaged or training diverged")
        return weight + self._decoder.norm_offset


def changed(array: Array, change: Change | None, each: Each = map) -> F32:
    """A whole tensor in float32 after a change, if there is one."""
    return array.astype(np.float32) if change is None else change.whole(array, each)


def vectors_digest(checkpoint: Checkpoint) -> str:
    """Hash of all vectors of a checkpoint; they are small, and the weights of norms go into other tensors than their own."""
    total = hashlib.sha256()
    for tensor in sorted(checkpoint.owners):
        if len(checkpoint.info(tensor).shape) == 1:
            total.update(f"{tensor}\n".encode() + checkpoint.read(tensor).tobytes())
    return total.hexdigest()


def _roles(decoder: Decoder) -> Iterator[tuple[str, _Role]]:
    """Every module that a rotation changes, with what it does; norms are named by those that they fold into."""
    names = decoder.names
    for layer in range(decoder.layers):
        attention, mlp = (None if name is None else name.format(layer) for name in (names.attention_norm, names.mlp_norm))
        reader = _Role(layer, attention, columns="residual")
        found = {
            **dict.fromkeys((names.q, names.k), reader),
            **dict.fromkeys((names.v, names.qkv), replace(reader, rows="heads")),
            **dict.fromkeys((names.gate, names.up, names.gate_up), replace(reader, norm=mlp)),
            names.o: _Role(layer, columns="heads", rows="residual"),
            names.down: _Role(layer, rows="residual"),
        }
        yield from ((name.format(layer), role) for name, role in found.items() if name is not None)
    yield names.embedding, _Role(columns="residual")
    yield names.lm_head, _Role(norm=names.final_norm, columns="residual")
