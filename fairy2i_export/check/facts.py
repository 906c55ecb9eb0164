"""What an exported model holds as a whole, as data. Nothing is executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fairy2i_export.errors import OptionError
from fairy2i_export.onnx_graph.operator import Node, is_operator, operand_of
from fairy2i_export.output.contract.nodes import open_finished, read_nodes
from fairy2i_export.output.data_file import MODEL
from fairy2i_runtime.folder import LOGITS_TO_KEEP, is_rewritten, open_folder
from fairy2i_runtime.measure.memory import DeviceMemory, ModelShape, model_memory, model_shape

# what a tensor is, by the operator that reads it; the first that fits
_KINDS = {
    "MatMulNBits": "other linear layers",
    "MatMul": "other linear layers",
    "GatherBlockQuantized": "embedding",
    "Gather": "embedding",
    "RotaryEmbedding": "rotary tables",
    "SkipSimplifiedLayerNormalization": "norms",
}
_ROTARY_INPUTS = (7, 8)  # of GroupQueryAttention
_OPERANDS = {
    "packed": "packed codes",
    "scales": "scales",
    "bias": "biases",
    "row_multiplier": "row and column multipliers",
    "col_multiplier": "row and column multipliers",
}


@dataclass(frozen=True)
class ModelFacts:
    """A model file without its layers.

    Attributes:
        model_file: the .onnx file.
        producer: program and version that wrote it.
        metadata: what it recorded.
        opsets: operator set versions by domain.
        tensor_bytes: bytes of the stored tensors by what they are; adds up to all of them.
        files: size of every file, of the folder if it is a model folder.
        vocab: number of logits, None if unknown.
        selects: whether it computes logits of the last tokens alone where a host asks for them.
        context_length: that the memory is told for; None if unknown.
        device: what running it takes at that context; None where that is unknown.
    """

    model_file: Path
    producer: str
    metadata: dict[str, str]
    opsets: dict[str, int]
    tensor_bytes: dict[str, int]
    files: dict[str, int]
    vocab: int | None
    selects: bool
    context_length: int | None
    device: DeviceMemory | None

    @property
    def memory(self) -> dict[str, int] | None:
        """Bytes at a full context; None where the context is unknown."""
        return None if self.device is None else self.device.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": str(self.model_file),
            "producer": self.producer,
            "metadata": self.metadata,
            "opsets": self.opsets,
            "tensor_bytes": self.tensor_bytes,
            "files": self.files,
            "vocab_size": self.vocab,
            LOGITS_TO_KEEP: self.selects,
            "context_length": self.context_length,
            "memory": self.memory,
        }


def open_nodes(path: Path) -> tuple[Path, int | None, list[Node]]:
    """The model file of a folder or of a path to a .onnx file, its context length if known, and its operator nodes.

    Raises:
        FormatError: if it is no model with our nodes, or a damaged one.
        ModelFolderError: if a folder is no model folder.
    """
    context: int | None = None
    model_file = path
    if path.is_file() and path.suffix == ".onnx":
        if (path.parent / "genai_config.json").is_file():
            folder = open_folder(path.parent)
            context = folder.context_length if folder.model_file.name == path.name else None
    elif is_rewritten(path):
        model_file = path / MODEL
    else:
        folder = open_folder(path)
        model_file, context = folder.model_file, folder.context_length
    return model_file, context, read_nodes(model_file)


def model_facts(model_file: Path, context_length: int | None) -> ModelFacts:
    """Everything but the layers.

    Args:
        model_file: the .onnx file.
        context_length: to tell the memory for.
    """
    model = open_finished(model_file)
    graph = model.graph
    folder, shape = model_file.parent, _shape(model_file, model)
    is_folder = (folder / "genai_config.json").is_file() or is_rewritten(folder)
    files = {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if file.is_file() and (is_folder or file.name.startswith(model_file.name))
    }
    return ModelFacts(
        model_file=model_file,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))) or "unknown",
        metadata=dict(sorted(model.metadata_props.items())),
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        tensor_bytes=_tensor_bytes(graph),
        files=files,
        vocab=_vocab(graph),
        selects=shape.selects,
        context_length=context_length,
        device=None if context_length is None else model_memory(model_file, shape, context_length),
    )


def checked_context(wanted: int | None, known: int | None) -> int | None:
    """The context to tell the memory for.

    Raises:
        OptionError: if it is less than 1 or more than the model was built for.
    """
    if wanted is not None and not 1 <= wanted <= (known or 1 << 24):
        raise OptionError(f"--context-length: expected 1 to {known or 1 << 24}, got {wanted}")
    return known if wanted is None else wanted


def _tensor_bytes(graph: ir.Graph) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in graph.initializers.values():
        if value.const_value is None:
            continue
        kind = _kind(value)
        found[kind] = found.get(kind, 0) + value.const_value.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _kind(value: ir.Value) -> str:
    for usage in value.uses():
        if is_operator(usage.node):
            return _OPERANDS[operand_of(usage.idx)]
        if usage.node.op_type == "GroupQueryAttention" and usage.idx in _ROTARY_INPUTS:
            return _KINDS["RotaryEmbedding"]
        if usage.node.op_type in _KINDS:
            return _KINDS[usage.node.op_type]
    return "other tensors"


def _vocab(graph: ir.Graph) -> int | None:
    """Number of logits."""
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    vocab = None if logits is None or logits.shape is None else logits.shape[-1]
    return vocab if isinstance(vocab, int) else None


def _shape(model_file: Path, model: ir.Model) -> ModelShape:
    """What memory depends on; zeros for what is no decoder."""
    keys = [
        x for x in model.graph.inputs if (x.name or "").startswith("past_key_values.") and (x.name or "").endswith(".key")
    ]
    heads = size = width = 0
    if keys and keys[0].shape is not None and keys[0].dtype is not None:
        dims = [dim if isinstance(dim, int) else 0 for dim in keys[0].shape]
        heads, size, width = dims[1], dims[3], int(keys[0].dtype.itemsize)
    return model_shape(
        model_file.parent,
        model.metadata_props,
        layers=len(keys),
        kv_heads=heads,
        head_size=size,
        cache_bytes=width,
        vocab=_vocab(model.graph) or 0,
        selects=any(value.name == LOGITS_TO_KEEP for value in model.graph.inputs),
    )
