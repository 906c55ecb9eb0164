"""What a calibrated folder holds, and which settings of training belong to it. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.native import F32
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.strategies import CALIBRATED
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import CheckpointError, FormatError, OptionError
from fairy2i_export.onnx_graph.formats.rounded import BLOCK
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.nodes import open_finished, read_nodes
from fairy2i_export.output.contract.norms import read_norms
from fairy2i_export.output.contract.origin import misfit
from fairy2i_export.output.data_file import MODEL
from fairy2i_export.output.metadata import ModelMetadata
from fairy2i_export.request.option import declared, flag_of
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.train.recipe import Recipe

LEARNING_RATE = 2e-4  # in units of a layer's mean row multiplier: so careful that codes hardly change in a short run
SAVE_DTYPE = "float32"  # 16-bit latent weights would leave the cells of some codes
_ROUNDED = {".int8": 8, ".int4": 4}


class CalibratedFolder:
    """A folder that calibration wrote, as the state that training starts from; weights stay mapped.

    Attributes:
        folder: where it lies.
        nodes: its quantized layers by module name.
        stages: of all of them.

    Args:
        folder: made by ``fairy2i-export SOURCE --calibrate``.

    Raises:
        OptionError: it is no such folder, damaged, or made in a way that training does not know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._where = folder, f"--from-calibrated {folder}"
        if not (folder / MODEL).is_file():
            raise OptionError(f"{self._where}: expected a folder that fairy2i-export wrote, found no {MODEL} in it")
        try:
            self._model, nodes = open_finished(folder / MODEL), read_nodes(folder / MODEL)
        except FormatError as error:
            raise OptionError(f"{self._where}: {error}") from error
        self._metadata = ModelMetadata(dict(self._model.metadata_props))
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        if not self._metadata.is_calibrated or self._metadata.is_recovered:
            raise OptionError(
                f"{self._where}: expected a calibrated model, found one whose codes come from rounding the weights: make one with "
                "fairy2i-export SOURCE --calibrate TEXT, or leave the option out, which starts from rounding"
            )
        found = sorted({node.operands.stages for node in nodes})
        if len(found) > 1:
            raise OptionError(
                f"{self._where}: has layers of {' and of '.join(map(str, found))} stages, and training knows one number for all; "
                "calibrate with --stages N, lm_head int8 or with --lm-head-stages N"
            )
        self.stages = found[0]

    @property
    def rotated(self) -> bool:
        """Whether its residual stream is another one than the source's: then no tensor of the source fits any layer."""
        return self._metadata.rotation is not None

    @property
    def stored(self) -> dict[str, str]:
        """How it stores what is not quantized the Fairy2i way, for config.json's entry of the result.

        A matrix that a rotated model's embedding and lm_head share becomes two, which training moves apart.
        """
        found = {key: self._metadata.get(key) for key in ("lm_head", "embedding")}
        if self.rotated and found["embedding"] == "shared":
            found["embedding"] = "int8"
        return {key: value for key, value in found.items() if value}

    def check_source(self, checkpoint: Checkpoint) -> None:
        """Raise OptionError unless the folder was made from these very weights."""
        if found := misfit(self._model, checkpoint):
            raise OptionError(
                f"{self._where}: {found.what} is {found.model} there and {found.source} in the source: it was made from another "
                "model"
            )
        if self._metadata.source_sha256 != checkpoint.sha256():
            raise OptionError(
                f"{self._where}: was not made from {checkpoint.directory} as it is now (config.json or weights differ); give "
                "the source that it was calibrated from"
            )

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with all that the folder decides, and with the defaults that suit such a start.

        Raises:
            OptionError: options that contradict it.
        """
        columns = any(node.operands.col_multiplier is not None for node in self.nodes.values())
        decided: dict[str, Any] = {
            "method": "fairy2i",
            "stages": self.stages,
            "profile": "fp32",
            "quantizer": CALIBRATED.name,
            "row_multiplier": "learned",
            "col_multiplier": "learned" if columns else "none",
            "learned_scales": True,
            "skip_lm_head": "lm_head" not in self.nodes,
        }
        known = declared(Recipe, "training")
        for name, value in decided.items():
            asked = getattr(recipe, name)
            if asked not in (None, value):
                raise OptionError(
                    f"{flag_of(name, known[name])}: the calibrated model decides it, {value!r}, got {asked!r}; leave the option out"
                )
        if recipe.include or recipe.exclude:
            raise OptionError(
                "--include, --exclude: with --from-calibrated the layers that are quantized there are trained; leave them out"
            )
        return replace(
            recipe,
            **decided,
            learning_rate=LEARNING_RATE if recipe.learning_rate is None else recipe.learning_rate,
            save_dtype=SAVE_DTYPE if recipe.save_dtype is None else recipe.save_dtype,
        )

    def linear(self, name: str) -> QuantizedLinear:
        """Codes, scales and multipliers of a layer; the profile is fp32."""
        return replace(unpack(self.nodes[name].operands), profile="fp32")

    def tensors(self, config: dict[str, Any]) -> Iterator[tuple[str, F32]]:
        """Tensors of the checkpoint as the folder has them, float32 by name, all but the quantized layers' weights.

        Without a rotation these are norms and biases alone, which calibration may have tuned; embedding, head and layers that
        are left alone are the source's, which has them without rounding.

        Args:
            config: the source's config.json.
        """
        decoder = describe(config)
        try:
            norms = read_norms(self._model, decoder.norm_offset)
        except FormatError as error:
            raise OptionError(f"{self._where}: {error}") from error
        yield from norms.items()
        values = {name: value.const_value for name, value in self._model.graph.initializers.items()}
        for name, value in values.items():
            if value is None or name in norms:
                continue
            module, _, kind = name.rpartition(".")
            if kind == "bias":
                yield name, value.numpy().astype(np.float32)
            elif not self.rotated:
                continue
            elif kind == "weight":
                yield name, value.numpy().astype(np.float32)
            elif kind == "weight_transposed":
                yield f"{module}.weight", np.ascontiguousarray(value.numpy().T, np.float32)
            elif (bits := _ROUNDED.get(f".{kind}")) is not None:
                yield f"{module}.weight", self._unrounded(name, bits, decoder.hidden_size)
            elif kind == "turn":  # the layer multiplies by the embedding, after this: x @ turn @ embedding.T
                embedding = f"{decoder.names.embedding}.int8"
                if embedding not in values:
                    raise OptionError(
                        f"{self._where}: expected {embedding}, which {module} shares, found none; it has been edited"
                    )
                yield f"{module}.weight", self._unrounded(embedding, 8, decoder.hidden_size) @ value.numpy().T

    def _unrounded(self, name: str, bits: int, columns: int) -> F32:
        """The float32 matrix [rows, columns] of one that was rounded in blocks of columns (onnx_graph/formats/rounded.py)."""
        data, scales = (self._model.graph.initializers[part].const_value for part in (name, f"{name}_scales"))
        assert data is not None
        assert scales is not None
        rows = data.shape.numpy()[0]
        flat: npt.NDArray[np.uint8] = data.numpy().reshape(rows, -1)
        if bits == 4:
            flat = np.stack([flat & 15, flat >> 4], axis=-1).reshape(rows, -1)
        per_column = np.repeat(scales.numpy().reshape(rows, -1), BLOCK, axis=1)[:, :columns]
        return np.asarray((flat[:, :columns].astype(np.float32) - np.float32(1 << (bits - 1))) * per_column, np.float32)


def open_calibrated(recipe: Recipe) -> CalibratedFolder | None:
    """The folder that a recipe starts from; None if it does not.

    Raises:
        OptionError: as the class.
    """
    return None if recipe.from_calibrated is None else CalibratedFolder(Path(recipe.from_calibrated))


def check_untrained(source: str, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the source comes from Fairy2i training itself: calibration starts from float models."""
    if checkpoint.config.get("fairy2i") is not None:
        raise CheckpointError(
            f"{source}: config.json says that it comes from Fairy2i training; --from-calibrated needs the float model that was "
            "calibrated. To train this one further, leave the option out"
        )
