"""The memory a model takes where it runs, estimated from shapes alone: by ``info``, ``inspect`` and ``--dry-run`` alike.

onnxruntime is not imported, which takes 20 MB: the exporter estimates, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy2i_runtime.errors import ModelFolderError
from fairy2i_runtime.folder import CONFIG_FILE
from fairy2i_runtime.jsonfile import read_optional_json

PROMPT_TOKENS = 128  # that are run at a time (engine.decoder.PREFILL_CHUNK, which a test compares)
TABLE_ROWS = 32  # rows of activations for which the operator builds tables at a time
PROGRAM_BYTES = 75_000_000  # Python, onnxruntime and the session, measured
CACHE_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a key or a value


@dataclass(frozen=True)
class ModelShape:
    """What the estimate has to know of a model.

    Attributes:
        layers: with a cache each.
        kv_heads: heads of keys and values.
        head_size: values per head.
        cache_bytes: of one key or value.
        heads: of the queries.
        hidden_size: of the activations between layers.
        intermediate_size: of those in a feed-forward block.
        vocab: number of logits.
        stages: of the Fairy2iMatMul layers, the most if they differ; 0 where there are none.
        selects: whether the graph computes logits of a prompt's last token alone where only they are asked for.
    """

    layers: int
    kv_heads: int
    head_size: int
    cache_bytes: int
    heads: int
    hidden_size: int
    intermediate_size: int
    vocab: int
    stages: int
    selects: bool

    @property
    def widest(self) -> int:
        """The most input features of a layer."""
        return max(self.hidden_size, self.intermediate_size, self.heads * self.head_size)


@dataclass(frozen=True)
class Copies:
    """Weights of which onnxruntime makes copies for its own kernels when it loads a model.

    Attributes:
        copied: bytes of the copies.
        stored: bytes of what is copied, as it lies in the file.
    """

    copied: int
    stored: int


@dataclass(frozen=True)
class DeviceMemory:
    """Estimate of the memory that running a model takes, in bytes.

    Attributes:
        context: tokens that prompt and answer have together.
        weights: of the data file, mapped from it: the system may drop and read again what it lacks room for, at the price of
            speed, and processes share them.
        graph: the .onnx file itself; 0 where it is not written yet.
        copied: weights of which onnxruntime makes a copy of its own, as it does for MatMul and MatMulNBits; those of
            Fairy2iMatMul are used where they lie. None where nobody counted them.
        cache: keys and values of a full context.
        activations: while a long prompt is read, with attention scores and the operator's tables.
        logits: likewise.
        program: the interpreter and its libraries.
    """

    context: int
    weights: int
    graph: int
    copied: int | None
    cache: int
    activations: int
    logits: int
    program: int = PROGRAM_BYTES

    @property
    def working(self) -> int:
        """What a run takes beside weights and cache."""
        return self.activations + self.logits

    @property
    def total(self) -> int:
        return self.weights + self.graph + (self.copied or 0) + self.cache + self.working + self.program

    def as_dict(self) -> dict[str, int]:
        """For JSON: parts that add up to the total. ``weights_copied`` is missing where it is not known."""
        return {
            "weights_mapped": self.weights + self.graph,
            **({} if self.copied is None else {"weights_copied": self.copied}),
            "kv_cache": self.cache,
            "activations": self.activations,
            "logits": self.logits,
            "program": self.program,
            "total": self.total,
        }


def estimate_memory(
    shape: ModelShape, context: int, data_bytes: int, copies: Copies | None, graph_bytes: int = 0
) -> DeviceMemory:
    """The memory for one text of a full context.

    In a model of our operator the whole data file counts as mapped. The few layers beside it that are copied count twice,
    then, which is an upper bound; in a model without it what was copied is not looked at any more and does not count.

    Args:
        shape: of the model.
        context: tokens of prompt and answer together.
        data_bytes: size of the data file.
        copies: None if they were not counted.
        graph_bytes: size of the .onnx file.
    """
    tokens = min(PROMPT_TOKENS, context)
    values = tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size) + shape.heads * tokens * context
    tables = min(TABLE_ROWS, tokens) * shape.widest * shape.stages * 16  # bytes: 16 sums per column pair, plane, part
    return DeviceMemory(
        context=context,
        weights=data_bytes - (copies.stored if copies is not None and not shape.stages else 0),
        graph=graph_bytes,
        copied=None if copies is None else copies.copied,
        cache=2 * shape.layers * shape.kv_heads * shape.head_size * shape.cache_bytes * context,
        activations=(4 * values + tables) * 5 // 4,  # a quarter is lost between allocations
        logits=4 * (1 if shape.selects else tokens) * shape.vocab * 5 // 4,
    )


def model_memory(model_file: Path, shape: ModelShape, context: int) -> DeviceMemory:
    """:func:`estimate_memory` for a model that is there, from the sizes of its files."""
    graph = model_file.stat().st_size
    files = [path for path in model_file.parent.iterdir() if path.name.startswith(model_file.name) and path.is_file()]
    return estimate_memory(
        shape, context, sum(path.stat().st_size for path in files) - graph, count_copies(model_file), graph
    )


def model_shape(
    folder: Path,
    metadata: Mapping[str, str],
    *,
    layers: int,
    kv_heads: int,
    head_size: int,
    cache_bytes: int,
    vocab: int,
    selects: bool,
) -> ModelShape:
    """Complete what inputs and outputs of a graph say by what stands in its metadata and in the files beside it.

    Args:
        folder: with genai_config.json and config.json, if there are any.
        metadata: of the model file.
        layers: with a cache each.
        kv_heads: heads of keys and values.
        head_size: values per head.
        cache_bytes: of one key or value.
        vocab: number of logits.
        selects: as in :class:`ModelShape`.
    """
    decoder = _json(folder / CONFIG_FILE).get("model", {})
    decoder = decoder.get("decoder", {}) if isinstance(decoder, dict) else {}
    heads = _positive(decoder, "num_attention_heads") or kv_heads
    hidden = _positive(decoder, "hidden_size") or heads * head_size
    inner = _positive(_json(folder / "config.json"), "intermediate_size") or 4 * hidden
    ours = metadata.get("fairy2i.backend", "fairy2i") == "fairy2i"  # the other backends are made of so many stages, too
    stages = [int(number) for number in metadata.get("fairy2i.stages", "").split(",") if number.strip().isdecimal()]
    stages_of_nodes = max(stages, default=0) if ours else 0
    return ModelShape(layers, kv_heads, head_size, cache_bytes, heads, hidden, inner, vocab, stages_of_nodes, selects)


def count_copies(model_file: Path) -> Copies | None:
    """What onnxruntime is going to copy of a model, from its nodes; None without the package ``onnx``.

    MatMul takes 4 bytes per weight, from float16 too; MatMulNBits what is stored, with the factors of
    ``--backend matmulnbits`` and without its block scales, which are ones that layers share.
    """
    try:
        import onnx
    except ImportError:
        return None
    graph = onnx.load(model_file, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def stored(name: str) -> int:
        tensor = tensors.get(name)
        if tensor is None or name.startswith("const/"):
            return 0
        return int(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)

    found = [0, 0]
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
        elif node.op_type == "MatMul" and node.input[1] in tensors:
            found[0] += 4 * math.prod(tensors[node.input[1]].dims)
            found[1] += stored(node.input[1])
        elif node.op_type == "MatMulNBits":
            size = sum(map(stored, [*node.input[1:4], f"{node.name}.factors"]))
            found = [found[0] + size, found[1] + size]
    return Copies(*found)


def memory_rows(memory: Mapping[str, int], context: int) -> list[tuple[str, str]]:
    """:meth:`DeviceMemory.as_dict` for people: what, how much."""
    copied = memory.get("weights_copied")
    unknown = "not counted: that needs the package onnx"
    return [
        ("weights, mapped from the file", human_bytes(memory["weights_mapped"])),
        *([] if copied == 0 else [("weights that onnxruntime copies", unknown if copied is None else human_bytes(copied))]),
        (f"keys and values of {context:,} tokens", human_bytes(memory["kv_cache"])),
        ("activations of a long prompt", human_bytes(memory["activations"])),
        ("logits of a long prompt", human_bytes(memory["logits"])),
        ("program", human_bytes(memory["program"])),
        ("all", human_bytes(memory["total"])),
    ]


def human_bytes(count: float) -> str:
    """1234567 -> "1.2 MB" (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _json(path: Path) -> dict[str, Any]:
    """A file that may be missing, and whose damage is no matter for an estimate."""
    try:
        return read_optional_json(path)
    except ModelFolderError:
        return {}


def _positive(values: Any, key: str) -> int | None:
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
