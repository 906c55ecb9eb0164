"""What an export would write, and the memory that the result needs where it runs, without reading a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.compile.options import ExportOptions, GivenOptions
from fairy2i_export.compile.prepare import Prepared, make_estimate, prepare
from fairy2i_export.compile.report import Estimate
from fairy2i_export.onnx_graph.formats import BACKENDS, stored_bytes
from fairy2i_export.onnx_graph.writer import CONSTANT
from fairy2i_export.output.data_file import Place
from fairy2i_export.output.workspace import check_free

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


def dry_run(
    source: str | Path,
    out: str | Path | None,
    given: GivenOptions,
    *,
    calibration: str | Path | None = None,
    calibrate: Sequence[str | Path] = (),
    calibrate_tokens: int | None = None,
    force: bool = False,
) -> DryRun:
    """Check an export as far as possible without reading weights or writing anything.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder that would be written, or None for the default.
        given: options of the export; the memory is that for their context length.
        calibration: as for the export; the text is read, but the model is not run.
        calibrate: as for the export; the texts are read.
        calibrate_tokens: as for the export.
        force: as for the export.

    Raises:
        Fairy2iError: what the export itself would raise before it reads weights.
    """
    prepared = prepare(source, out, given, calibration, calibrate, calibrate_tokens)
    check_free(prepared.target, force, prepared.checkpoint.directory)
    return DryRun(
        path=prepared.target,
        source=prepared.checkpoint.name,
        source_bytes=prepared.checkpoint.weight_bytes(),
        options=prepared.options,
        groups=_groups(prepared),
        estimate=make_estimate(prepared),
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
        copy = BACKENDS[prepared.options.backend].copied_bytes(linear, prepared.options)
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
