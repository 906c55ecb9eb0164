"""What an export would write, and the memory that the result needs where it runs, without reading a weight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.prepare import Prepared, make_estimate, prepare
from fairy2i_export.onnx_graph.formats import FORMATS, stored_bytes
from fairy2i_export.onnx_graph.writer import CONSTANT
from fairy2i_export.output.data_file import Place
from fairy2i_export.output.sizes import Estimate
from fairy2i_export.output.workspace import check_space
from fairy2i_export.request.option import build, takes
from fairy2i_export.request.request import Request

PROMPT_TOKENS = 128  # that fairy2i_runtime runs at a time (decoder.PREFILL_CHUNK)
TABLE_ROWS = 32  # rows of activations for which the operator builds tables at a time
CACHE_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a key or a value
PROGRAM_BYTES = 75_000_000  # Python, onnxruntime and the session, measured


@dataclass(frozen=True)
class TensorGroup:
    """Initializers that differ in their layer only.

    Attributes:
        name: with ``*`` for the layer's number.
        count: how many there are.
        dtype: of ONNX, for instance UINT8.
        shape: of each.
        total_bytes: of all.
    """

    name: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    total_bytes: int


@dataclass(frozen=True)
class DeviceMemory:
    """Estimate of the memory a device needs to run the model with fairy2i_runtime, in bytes.

    Attributes:
        context: tokens that prompt and answer have together.
        weights: mapped from the file: the system may drop and read again what it lacks room for, at the price of speed.
        cache: keys and values of a full context.
        working: activations, tables and logits while a long prompt is read.
        copied: weights of which onnxruntime makes a copy of its own, as it does for all operators but Fairy2iMatMul.
        program: the interpreter and its libraries.
    """

    context: int
    weights: int
    cache: int
    working: int
    copied: int = 0
    program: int = PROGRAM_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.copied + self.cache + self.working + self.program


@dataclass(frozen=True)
class DryRun:
    """What :func:`dry_run` found.

    Attributes:
        path: the folder that would be written.
        source: name of the checkpoint.
        source_bytes: of its safetensors files.
        options: in force.
        groups: everything that would be stored, in the order of the file.
        estimate: size of the folder's model files, and peak memory of the export.
        device: memory to run the model.
        warnings: those of the export that need no weights.
    """

    path: Path
    source: str
    source_bytes: int
    options: ExportOptions
    groups: tuple[TensorGroup, ...]
    estimate: Estimate
    device: DeviceMemory
    warnings: tuple[str, ...]


@takes(Request, "checkpoint")
def dry_run(source: str | Path, out: str | Path | None = None, **options: Any) -> DryRun:
    """Check all that an export checks before it works, without reading weights or writing anything.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder that would be written, or None for the default.
        **options: as for :func:`fairy2i_export.export`; the memory is that for their context length.

    Raises:
        Fairy2iError: what the export itself would raise before it reads weights.
    """
    prepared = prepare(source, out, build(Request, "checkpoint", options, str(source)))
    estimate = make_estimate(prepared)
    check_space(prepared.target, estimate.output_bytes)
    return DryRun(
        path=prepared.target,
        source=prepared.checkpoint.name,
        source_bytes=prepared.checkpoint.weight_bytes(),
        options=prepared.options,
        groups=_groups(prepared),
        estimate=estimate,
        device=device_memory(prepared),
        warnings=prepared.warnings,
    )


def device_memory(prepared: Prepared) -> DeviceMemory:
    """Estimate for one conversation of the exported context length, from shapes alone."""
    decoder, context = prepared.decoder, prepared.options.context_length
    tokens = min(PROMPT_TOKENS, context)
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * CACHE_BYTES[prepared.options.kv_cache] * context
    widest = max(x.in_features for x in prepared.plan.rewritten)
    activations = tokens * (4 * decoder.hidden_size + 3 * decoder.intermediate_size)
    attention = decoder.heads * tokens * context
    logits = tokens * decoder.vocab_size
    tables = min(TABLE_ROWS, tokens) * widest * prepared.options.stages * 16  # bytes: 16 sums per column pair, plane, part
    working = 4 * (activations + attention + logits) + tables
    copied, mapped = 0, prepared.data_bytes
    for linear in prepared.plan.rewritten:
        copy = FORMATS[prepared.options.backend].copied_bytes(linear, prepared.options)
        copied += copy
        mapped -= stored_bytes(linear, prepared.options) if copy else 0  # not looked at any more
    return DeviceMemory(context, mapped, cache, working * 5 // 4, copied)  # a quarter is lost between allocations


def _groups(prepared: Prepared) -> tuple[TensorGroup, ...]:
    found: dict[tuple[str, str, tuple[int, ...]], TensorGroup] = {}
    for value in prepared.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or str(tensor.name).startswith(CONSTANT):
            continue
        name = str(tensor.name)
        place: Place = prepared.places[name]
        key = (_starred(name), tensor.dtype.name, tuple(map(int, tensor.shape.numpy())))
        count, size = (found[key].count, found[key].total_bytes) if key in found else (0, 0)
        found[key] = TensorGroup(key[0], count + 1, key[1], key[2], size + place.size)
    return tuple(found.values())


def _starred(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
