"""Calibration as a step of the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairy2i_export.codes.choices import Effort
from fairy2i_export.compile.calibrate.head import calibrate_head, states_of
from fairy2i_export.compile.calibrate.skeleton import Skeleton
from fairy2i_export.compile.calibrate.store import LayerStore
from fairy2i_export.compile.calibrate.streams import torch_threads
from fairy2i_export.compile.calibrate.tuning.run import Schedule, tune
from fairy2i_export.compile.calibrate.tuning.student import Student
from fairy2i_export.compile.calibrate.walk import Walk, calibrate_layers
from fairy2i_export.compile.earlier import EarlierExport
from fairy2i_export.compile.identity import identity
from fairy2i_export.compile.prepare import Prepared
from fairy2i_export.output.progress import Observer

SWEEPS: dict[Effort, int] = {"normal": 24, "high": 128}  # of annealing over the codes of a matrix
SCHEDULES: dict[Effort, Schedule] = {"normal": Schedule(), "high": Schedule(epochs=2, most=384, share=0.75)}


def calibrate_model(prepared: Prepared, folder: Path, observer: Observer) -> None:
    """Calibrate all layers that are not calibrated yet, beside codes of an earlier export lm_head alone, and have them written.

    Args:
        prepared: the export; its weight source gives calibrated layers from now on.
        folder: where finished layers are kept.
        observer: hears about progress.

    Raises:
        Fairy2iError: weights or activations that are not finite, or a model that transformers does not build.
    """
    if prepared.text is None:
        raise AssertionError("no text to calibrate with")
    store = LayerStore(folder, identity(prepared.checkpoint, prepared.options, prepared.places))
    linears, without = prepared.on_text, prepared.options.calibrate_without
    sweeps = 0 if "descent" in without else SWEEPS[prepared.options.calibrate_effort]
    if len(store):
        observer.note(f"continuing an unfinished calibration: {len(store)} layers are there")
    with torch_threads(prepared.threads):
        if store.tuned is None:
            walk = Walk(skeleton_of(prepared), prepared.decoder, linears, store, sweeps)
            if prepared.earlier is not None:
                _choose_head(walk, prepared.earlier, prepared.text.ids, observer)
            else:
                observer.phase("calibrating", sum(linear.parameters for linear in linears.values()))
                quantized, exact = calibrate_layers(walk, prepared.text.ids, observer.advance)
                calibrate_head(walk, quantized, exact, {}, observer.advance)
                del quantized
                if "tuning" not in without:
                    schedule = SCHEDULES[prepared.options.calibrate_effort].for_text(len(exact))
                    schedule = schedule.for_stages(_mean_stages(walk))
                    used = schedule.used(len(exact))
                    exact = exact[used]  # the rest is not needed any more
                    _tune(prepared, walk, schedule, prepared.text.ids[used], exact, observer)
    if (earlier := prepared.earlier) is not None:
        prepared.weights.calibrated = lambda name: store.linear(name) if name in store else earlier.linear(name)
        prepared.weights.replaced = earlier.norms(prepared.decoder.norm_offset)
    else:
        prepared.weights.calibrated = store.linear
        if store.tuned is not None:
            prepared.weights.replaced = store.tuned.norms


def _choose_head(walk: Walk, earlier: EarlierExport, ids: Any, observer: Observer) -> None:
    """Calibrate lm_head alone, beside the layers of an earlier export."""
    head = walk.linears[walk.decoder.names.lm_head]
    if head.name in walk.store:
        return
    observer.phase("running layers", walk.skeleton.layers)
    quantized, exact = states_of(walk, earlier, ids, lambda: observer.advance(1))
    observer.phase("calibrating", head.parameters)
    calibrate_head(walk, quantized, exact, earlier.norms(walk.decoder.norm_offset), observer.advance)


def _tune(prepared: Prepared, walk: Walk, schedule: Schedule, ids: Any, exact: Any, observer: Observer) -> None:
    """Tune the whole model, and have the store give its layers as they are then.

    Args:
        prepared: the export.
        walk: whose layers are all in the store.
        schedule: how long and how fast.
        ids: int64 [windows, length].
        exact: hidden states of the float model after its last layer, torch float32 [windows, length, hidden]; normalised in place.
        observer: hears about progress.
    """
    import torch

    decoder = prepared.decoder
    observer.phase("tuning", schedule.steps(len(ids)))
    student = Student(walk.skeleton, decoder, prepared.plan.linears, walk.store)
    with torch.no_grad():
        norm = walk.skeleton.module(decoder.names.final_norm)
        for window in exact:
            window.copy_(norm(window))
    walk.store.write_tuned(tune(student, exact, ids, decoder.logits_softcap, schedule, lambda: observer.advance(1)))


def _mean_stages(walk: Walk) -> float:
    """Of the weights inside decoder layers."""
    inside = [linear for linear in walk.linears.values() if linear.name != walk.decoder.names.lm_head]
    inside = inside or list(walk.linears.values())
    return sum(linear.stages * linear.parameters for linear in inside) / sum(linear.parameters for linear in inside)


def skeleton_of(prepared: Prepared) -> Skeleton:
    """The modules that are calibrated."""
    return Skeleton(prepared.checkpoint, prepared.decoder, prepared.options.rope_scaling, prepared.rotated)
