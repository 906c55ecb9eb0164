"""Whether a checkpoint can be what a finished model was made from, told from shapes alone; no weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from fairy2i_export.onnx_graph.operator import is_operator, shapes_of
from fairy2i_export.output.metadata import ModelMetadata
from fairy2i_export.source.checkpoint import Checkpoint

EMBEDDING = "model.embed_tokens"
_CACHE = re.compile(r"past_key_values\.(\d+)\.key")
_WHOLE = ".weight"
_TRANSPOSED = ".weight_transposed"  # of dense layers


class Misfit(NamedTuple):
    """What differs, what it is in the model and in the checkpoint."""

    what: str
    model: str
    source: str


def weight_name(checkpoint: Checkpoint, module: str) -> str | None:
    """The tensor that holds a module's weight; a tied head shares the embedding's. None if there is none."""
    name = f"{module}{_WHOLE}"
    if name in checkpoint:
        return name
    shared = f"{EMBEDDING}{_WHOLE}"
    return shared if module.endswith("lm_head") and shared in checkpoint else None


def misfit(model: ir.Model, checkpoint: Checkpoint) -> Misfit | None:
    """The first thing that tells that the checkpoint is of another model; None: architecture and shapes agree.

    Tensors that the checkpoint lacks are not looked for: who needs them says so.
    """
    stated, names = ModelMetadata(dict(model.metadata_props)).get("architecture", ""), checkpoint.config.get("architectures")
    if stated and isinstance(names, list) and names and stated not in names:
        return Misfit("architecture", stated, ", ".join(map(str, names)))
    for module, shape in _shapes(model):
        name = weight_name(checkpoint, module)
        found = None if name is None else list(checkpoint.matrix_shape(name))
        if found is not None and not (
            len(found) == len(shape) and all(a in (None, b) for a, b in zip(shape, found, strict=True))
        ):
            whole = [there if here is None else here for here, there in zip(shape, found, strict=False)]
            return Misfit(f"tensor {name}", f"shape {whole}", f"{found}")
    layers, stated_layers = _layers(model), checkpoint.config.get("num_hidden_layers")
    if layers and isinstance(stated_layers, int) and stated_layers != layers:
        return Misfit("num_hidden_layers", str(layers), str(stated_layers))
    return None


def _shapes(model: ir.Model) -> Iterator[tuple[str, list[int | None]]]:
    """Modules of the model and the shape of the weight that each was made of; None where the model does not tell."""
    vocab = next((value.shape[-1] for value in model.graph.outputs if value.name == "logits" and value.shape), None)
    if isinstance(vocab, int):
        yield EMBEDDING, [vocab, None]
    for node in filter(is_operator, model.graph):
        yield from shapes_of(node)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        shape: list[int | None] = [size if isinstance(size, int) else None for size in tensor.shape]
        if name.endswith(_WHOLE):
            yield name.removesuffix(_WHOLE), shape
        elif name.endswith(_TRANSPOSED):
            yield name.removesuffix(_TRANSPOSED), shape[::-1]
        elif name.endswith(".ternary"):  # two halves of rows in every row of MatMulNBits
            yield name.removesuffix(".ternary"), [None if shape[0] is None else 2 * shape[0], None]


def _layers(model: ir.Model) -> int:
    return sum(bool(_CACHE.fullmatch(value.name or "")) for value in model.graph.inputs)
