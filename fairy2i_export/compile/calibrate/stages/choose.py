"""The choice of stages as a step of the export."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from fairy2i_export.codes.choices import MAX_STAGES
from fairy2i_export.compile.calibrate.run import skeleton_of
from fairy2i_export.compile.calibrate.stages import sensitivity
from fairy2i_export.compile.calibrate.stages.allocation import allocate
from fairy2i_export.compile.calibrate.streams import torch_threads
from fairy2i_export.compile.identity import identity
from fairy2i_export.compile.plan import sharing_bits
from fairy2i_export.compile.prepare import Prepared
from fairy2i_export.output.progress import Observer
from fairy2i_runtime.regular_file import parse_json


def choose_stages(prepared: Prepared, file: Path, observer: Observer) -> dict[str, int]:
    """Stages of every layer to be calibrated, by how much it matters on a part of the text; ``--bits`` on average at most.

    Args:
        prepared: the export.
        file: where the choice is kept; one that an interrupted export of the same left there is taken.
        observer: hears about progress.

    Raises:
        Fairy2iError: weights, gradients or activations that are not finite, or a model that transformers does not build.
    """
    bits = prepared.options.bits
    if prepared.text is None or bits is None:
        raise AssertionError("no text to measure with, or no average to keep")
    made_for = {**identity(prepared.checkpoint, prepared.options, {}), "revision": sensitivity.REVISION}
    if (known := _kept(file, made_for)) is not None:
        return known
    parameters = sharing_bits(prepared.plan, prepared.decoder, prepared.options)
    linears = {name: prepared.plan.linears[name] for name in parameters}
    head = prepared.plan.linears[prepared.decoder.names.lm_head]
    ids = prepared.text.ids
    ids = ids[np.linspace(0, len(ids) - 1, min(sensitivity.WINDOWS, len(ids))).astype(int)]
    observer.phase("measuring layers", 2 * prepared.decoder.layers)
    with torch_threads(prepared.threads):
        found = sensitivity.measure(
            skeleton_of(prepared), linears, head, prepared.decoder.logits_softcap, ids, observer.advance
        )
        losses = {name: layer.losses(weight) for name, layer, weight in found}
    stages = allocate(parameters, losses, bits)
    unfinished = file.with_name(f"{file.name}.new")
    unfinished.write_text(json.dumps({"made_for": made_for, "stages": stages}))
    os.replace(unfinished, file)
    return stages


def _kept(file: Path, made_for: dict[str, str]) -> dict[str, int] | None:
    """The choice in a file, if it was made for the same."""
    try:
        found = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("made_for") != made_for or not isinstance(found.get("stages"), dict):
        return None
    stages: dict[str, int] = found["stages"]
    return stages if all(type(count) is int and 1 <= count <= MAX_STAGES for count in stages.values()) else None
