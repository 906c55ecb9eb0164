"""The source checkpoint as reference: its weights quantized anew, and the model run by torch and transformers.

torch and transformers belong to the ``train`` extra and are imported only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.choices import COLUMN_CHOICES, COMPLEX_QUANTIZER, PROFILES, SCALE_CHOICES, RowChoice, one_of
from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.quantizer import quantize
from fairy2i_export.codes.strategies import QUANTIZERS, STRATEGIES
from fairy2i_export.codes.strategies.ifairy import quantize_conjugate
from fairy2i_export.decoder.architectures import describe, has_complex_weights
from fairy2i_export.decoder.rope import stretch_context
from fairy2i_export.errors import CheckpointError, FormatError
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.nodes import open_finished
from fairy2i_export.output.contract.norms import read_norms
from fairy2i_export.output.contract.origin import EMBEDDING, misfit, weight_name
from fairy2i_export.output.metadata import ModelMetadata, key_names
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import quantizer_arguments
from fairy2i_export.source.rotation.choice import stated_rotation
from fairy2i_export.source.rotation.weights import RotatedWeights, changed
from fairy2i_export.source.transformers_model import meta_model, remake_buffers

F32 = npt.NDArray[np.float32]
# metadata key -> values; the first one holds where models of earlier versions have none
_HOW: dict[str, tuple[str, ...]] = {
    "profile": ("", *PROFILES),
    "quantizer": (*QUANTIZERS, COMPLEX_QUANTIZER),
    "row_multiplier": get_args(RowChoice),
    "col_multiplier": COLUMN_CHOICES,
    "scales": SCALE_CHOICES,
}

_OWN_LAYERS = "so they are not compared with it, and torch multiplies by the model's own dequantized layers"
CALIBRATED_NOTE = (
    f"codes were found by calibration on a text (--calibrate): the source alone does not give them, {_OWN_LAYERS}"
)
RECOVERED_NOTE = (
    "codes were recovered from a model that was dequantized already: nobody recorded how the source was quantized, "
    f"{_OWN_LAYERS}"
)
TUNED_NOTE = "norms were tuned on that text too (fairy2i.calibration), so they are the model's own as well"
COMPLEX_NOTE = (
    "logits are not compared with the source: transformers has no class for models of complex weights, and code that a checkpoint "
    "brings along is never run"
)
ROTATED_NOTE = "the source's weights were rotated as the model's were (fairy2i.rotation) before they were compared"


def check_origin(model_file: Path, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that a model, of any backend, cannot have been exported from. No weight is read for it.

    Raises:
        CheckpointError: another architecture, vocabulary, number of layers, or shape of a layer.
        FormatError: the model is damaged.
    """
    if found := misfit(open_finished(model_file), checkpoint):
        raise CheckpointError(
            f"{checkpoint.directory}: {found.what}: expected {found.model} as in the model, found {found.source}; give the "
            "checkpoint that the model was exported from"
        )


class SourceWeights:
    """Weights of a checkpoint, quantized as a model's metadata says it was exported.

    A calibrated model cannot be made again from the source alone, nor can one whose codes were recovered: their quantized layers
    are taken from the model itself, and so are norms that were tuned.

    Attributes:
        note: why codes cannot be compared with the source; empty if they can.
        calibrated: the model's codes come from calibration.
        stagewise: the first stages of the codes alone approximate the weights.
        rotated: what the model's rotations make of the source's tensors, or None.
        norms: weights of norms by tensor name that are the model's own; empty unless it was tuned.

    Args:
        checkpoint: the opened source.
        model_file: the model.
        metadata: the model's metadata.

    Raises:
        FormatError: if the metadata does not say how, or states a rotation that cannot be made again, or the model is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, model_file: Path, metadata: Mapping[str, str]) -> None:
        self.checkpoint = checkpoint
        self.metadata = ModelMetadata(metadata)
        self.calibrated = self.metadata.is_calibrated
        self.note = CALIBRATED_NOTE if self.calibrated else RECOVERED_NOTE if self.metadata.is_recovered else ""
        self._how = {key: self.metadata.get(key, first) for key, (first, *_) in _HOW.items()}
        known = self._how["profile"] and all(self._how[key] in allowed for key, allowed in _HOW.items())
        if not (known or self.note):
            raise FormatError(
                f"the model's metadata does not say how it was quantized ({key_names(_HOW)}); "
                "it was not written by fairy2i-export or has been edited"
            )
        strategy = STRATEGIES.get(self._how["quantizer"])
        self.rotated = _rotated(checkpoint, self.metadata)
        self.norms: dict[str, F32] = {}
        if self.metadata.is_tuned:
            decoder = describe(stretch_context(checkpoint.config, self.metadata.rope_scaling))
            self.norms = read_norms(open_finished(model_file), decoder.norm_offset)
            self.note += f"; {TUNED_NOTE}"
        if self.rotated is not None and self.note:
            self.note += f"; {ROTATED_NOTE}"
        self.stagewise = strategy is not None and strategy.stagewise and not self.note

    @property
    def has_twin(self) -> bool:
        """Whether transformers can build the model."""
        return not has_complex_weights(self.checkpoint.config)

    @property
    def is_other(self) -> bool:
        """Whether the model says that it was made from other files than these."""
        stated = self.metadata.source_sha256
        return bool(stated) and stated != self.checkpoint.sha256()

    def tensor_of(self, module: str) -> str:
        """The tensor that holds a module's weight; a tied head shares the embedding's.

        Raises:
            CheckpointError: if there is none.
        """
        name = weight_name(self.checkpoint, module)
        if name is None:
            raise CheckpointError(
                f"{self.checkpoint.directory}: expected a tensor {module}.weight for the node of that name, found none"
            )
        return name

    def weight(self, module: str) -> npt.NDArray[Any]:
        """A module's weight as the model was made of it, a real matrix: the source's, rotated if the model was.

        Raises:
            CheckpointError: if there is none.
        """
        tensor = self.tensor_of(module)
        weight = self.checkpoint.read(tensor)
        if tensor in self.checkpoint.pairs:
            re, im = np.split(weight, 2)
            return np.block([[re, im], [im, -re]])
        change = None if self.rotated is None else self.rotated.change(module)
        return weight if change is None else change.whole(weight)

    def quantized(self, node: Node) -> QuantizedLinear:
        if self.note:
            return unpack(node.operands)
        tensor = self.tensor_of(node.name)
        if tensor in self.checkpoint.pairs:
            words, profile = self.checkpoint.words(tensor), one_of("profile", self._how["profile"], PROFILES)
            return quantize_conjugate(self.checkpoint.read(tensor), profile, name=words)
        weight = self.weight(node.name)
        how: Any = SimpleNamespace(stages=node.operands.stages, **self._how)
        sizes = 2 * node.operands.n, 2 * node.operands.m
        arguments = quantizer_arguments(self.checkpoint, node.name, *sizes, how)
        return quantize(weight, how.stages, how.profile, name=tensor, **arguments)

    def differing(self, nodes: list[Node], done: Callable[[], None] = lambda: None) -> Iterator[tuple[str, str]]:
        """(node, reason) for every node that does not hold what quantizing the source gives."""
        for node in nodes:
            expected, found = self.quantized(node), unpack(node.operands)
            if expected.codes.shape != found.codes.shape:
                yield (
                    node.name,
                    f"the source has {2 * expected.n} x {2 * expected.m}, the model {2 * found.n} x {2 * found.m}",
                )
            elif not np.array_equal(expected.codes, found.codes):
                yield node.name, f"{np.mean(expected.codes != found.codes):.2%} of the codes differ"
            elif not np.array_equal(expected.scales, found.scales):
                yield node.name, "the scales differ"
            elif not _equal(expected.row_multiplier, found.row_multiplier):
                yield node.name, "the row multipliers differ"
            elif not _equal(expected.col_multiplier, found.col_multiplier):
                yield node.name, "the column multipliers differ"
            done()


def _equal(a: F32 | None, b: F32 | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)


def torch_logits(source: SourceWeights, nodes: list[Node], ids: npt.NDArray[np.int64]) -> F32:
    """Logits [length, vocab] of a text [length] by the model of :func:`torch_model`."""
    return model_logits(torch_model(source, nodes), ids)


def model_logits(model: Any, ids: npt.NDArray[np.int64]) -> F32:
    """Logits [length, vocab] of a text [length] by a transformers model."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids[None]), use_cache=False).logits[0]
    return np.asarray(logits.float().numpy())


def torch_model(source: SourceWeights, nodes: list[Node]) -> Any:
    """The source as a transformers model in float32, with dequantized weights in the rewritten layers.

    A model that was rotated is compared with the source rotated in the same way, and one that was tuned with its own norms; where
    there are no rewritten layers (``nodes`` is empty), the source as it is is meant.

    Raises:
        CheckpointError: if transformers cannot build the model, or its parameters are not those of the checkpoint.
    """
    import torch

    checkpoint, rotated, norms = source.checkpoint, source.rotated if nodes else None, source.norms if nodes else {}
    rewritten = {node.name: node for node in nodes}
    # a quantized head no longer equals the embedding, nor does a rotated one
    untied = "lm_head" in rewritten or (rotated is not None and rotated.unties)
    model, config = meta_model(checkpoint, source.metadata.rope_scaling, "eager", untied=untied)
    state: dict[str, Any] = {}
    for name in model.state_dict():
        module, _, key = name.rpartition(".")
        if key == "weight" and module in rewritten:
            array = source.quantized(rewritten[module]).dequantize("none")
        elif name in norms:
            array = norms[name]
        elif name in checkpoint or module.endswith("lm_head"):
            array = checkpoint.read(name if name in checkpoint else source.tensor_of(module))
            change = None if rotated is None else rotated.change(module, key)
            array = changed(array, change)
            if change is not None and module == EMBEDDING and source.metadata.get("embedding") == "float16":
                array = array.astype(np.float16).astype(np.float32)  # as it is stored; a source's own values fit
        else:
            raise CheckpointError(f"{checkpoint.directory}: tensor {name}, which transformers needs, is missing")
        state[name] = torch.from_numpy(np.ascontiguousarray(array))
    model.load_state_dict(state, strict=True, assign=True)
    remake_buffers(model, config)
    return model.eval()


def _rotated(checkpoint: Checkpoint, metadata: ModelMetadata) -> RotatedWeights | None:
    """The rotations that a model's metadata states, for its source."""
    if metadata.rotation is None:
        return None
    decoder = describe(stretch_context(checkpoint.config, metadata.rope_scaling))
    return RotatedWeights(checkpoint, decoder, stated_rotation(metadata.rotation, decoder))


def is_rounded(source: SourceWeights) -> bool:
    """Whether embedding, head or cache hold less than the checkpoint's values, so that logits may differ for it."""
    if source.metadata.is_rounded:
        return True
    if source.metadata.get("embedding", "float32") != "float16" or source.rotated is not None:
        return False  # a rotated embedding is compared as it is stored
    table = source.checkpoint.read("model.embed_tokens.weight")
    return table.dtype not in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
