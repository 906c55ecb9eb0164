"""What an export would write, and the memory that the result needs where it runs, without reading a weight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairy2i_export.compile.estimate import calibration_seconds, make_estimate
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.compile.prepare import Prepared, prepare
from fairy2i_export.onnx_graph.formats import FORMATS, format_of, stored_bytes
from fairy2i_export.onnx_graph.writer import CONSTANT
from fairy2i_export.output.data_file import Place
from fairy2i_export.output.disk.space import check_space
from fairy2i_export.output.sizes import Estimate
from fairy2i_export.request.option import build, takes
from fairy2i_export.request.request import Request
from fairy2i_runtime.measure.memory import CACHE_BYTES, PROMPT_TOKENS, Copies, DeviceMemory, ModelShape, estimate_memory

__all__ = ["PROMPT_TOKENS", "DeviceMemory", "DryRun", "TensorGroup", "device_memory", "dry_run"]


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
        calibration_seconds: about how long the calibration would take on this machine; 0 if there is none.
    """

    path: Path
    source: str
    source_bytes: int
    options: ExportOptions
    groups: tuple[TensorGroup, ...]
    estimate: Estimate
    device: DeviceMemory
    warnings: tuple[str, ...]
    calibration_seconds: float = 0.0


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
        calibration_seconds=calibration_seconds(prepared),
    )


def device_memory(prepared: Prepared) -> DeviceMemory:
    """Estimate for one conversation of the exported context length; model.onnx, which is not made yet, counts as nothing."""
    decoder, options = prepared.decoder, prepared.options
    shape = ModelShape(
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_size=decoder.head_dim,
        cache_bytes=CACHE_BYTES[options.kv_cache],
        heads=decoder.heads,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        vocab=decoder.vocab_size,
        stages=max(prepared.plan.stages.values()) if FORMATS[options.backend].library else 0,
        selects=True,
    )
    copied = stored = 0
    for linear in prepared.plan.linears.values():
        copy = format_of(linear, options).copied_bytes(linear, options)
        copied += copy
        stored += stored_bytes(linear, options) if copy else 0
    return estimate_memory(shape, options.context_length, prepared.data_bytes, Copies(copied, stored))


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
