"""Everything the report shows, measured: from the model, its source and a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.check.facts import ModelFacts, model_facts
from fairy2i_export.check.layer_facts import LayerFacts, layer_facts
from fairy2i_export.check.page.agreement import Agreement, agreement
from fairy2i_export.check.source_weights import SourceWeights, check_origin, torch_logits
from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.native import F32
from fairy2i_export.codes.profiles import CODE_IM, CODE_RE
from fairy2i_export.codes.quantized import QuantizedLinear, change_of, split_widely_linear
from fairy2i_export.codes.training_entry import says_trained
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.layers import LayerResult, check_layers
from fairy2i_export.output.contract.logits import LogitsComparison, compare
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.transformers_model import torch_is_installed
from fairy2i_runtime import Model, load

F64 = npt.NDArray[np.float64]
Step = Callable[[str], None]  # called with the name of every layer or phase that is done

_PLACE = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:.*\.)?([^.]+)")
_CLOUD_POINTS = 900  # latent weights drawn per layer
_COUNTED = 1 << 22  # entries whose code pairs are counted per layer


@dataclass(frozen=True)
class Constellation:
    """One layer's U as points of the complex plane, or its W where that is all it has.

    Attributes:
        layer: its name.
        cloud: complex64 [points], latent entries in units of the row multiplier, drawn at random.
        levels: complex64 [4^stages], the values that codes can express.
        shares: float64 [4^stages], how often each occurs.
    """

    layer: str
    cloud: npt.NDArray[np.complex64]
    levels: npt.NDArray[np.complex64]
    shares: F64


@dataclass(frozen=True)
class LayerReport:
    """One layer: facts, errors, and where it stands in the model.

    Attributes:
        facts: shapes, scales, codes.
        depth: number of the decoder block, None outside the blocks.
        module: short name of the module, such as ``q_proj``.
        stage_errors: ``|A - Q(A)| / |A|`` when only the first stages are kept, for each number of stages; of codes that were
            found for all stages together, which the first stages alone do not approximate, with all stages only.
        kernel: relative errors by kernel and activations.
    """

    facts: LayerFacts
    depth: int | None
    module: str
    stage_errors: list[float]
    kernel: LayerResult

    @property
    def quantization_error(self) -> float:
        return self.stage_errors[-1]


@dataclass(frozen=True)
class ReportData:
    """All there is to show.

    Attributes:
        stagewise: first stages alone approximate a weight.
        calibrated: codes were found on a text.
        float_source: logits of the model compared with the source's as it is; None where torch is not used, or where the
            source's float weights mean nothing by themselves because it was trained for Fairy2i.
    """

    title: str
    source: str
    source_bytes: int
    facts: ModelFacts
    layers: list[LayerReport]
    constellations: list[Constellation]
    agreement: Agreement
    notes: list[str] = field(default_factory=list)
    stagewise: bool = True
    calibrated: bool = False
    float_source: LogitsComparison | None = None


def collect(
    model: Model,
    nodes: list[Node],
    checkpoint: Checkpoint,
    ids: npt.NDArray[np.int64],
    step: Step = lambda name: None,
    *,
    use_torch: bool = True,
) -> ReportData:
    """Measure everything.

    Args:
        model: loaded in default mode.
        nodes: of the model.
        checkpoint: what it was exported from.
        ids: token ids [length] of the text to run.
        step: hears about progress, two calls per layer and three for the logits.
        use_torch: compare the logits with torch's, if it is installed; else with the model's own exact mode.

    Raises:
        CheckpointError: if the source does not fit the model.
    """
    check_origin(model.folder.model_file, checkpoint)
    source = SourceWeights(checkpoint, model.folder.model_file, model.metadata)
    notes = []
    if source.is_other:
        notes.append("The model was exported from other files than the source given: errors below say little.")
    if source.note:
        notes.append(f"{source.note[0].upper()}{source.note[1:]}.")
    model_file = model.folder.model_file
    facts = list(layer_facts(nodes))
    drawn = _layers_to_draw([node.name for node in nodes])
    stage_errors: dict[str, list[float]] = {}
    constellations = {}
    for node in nodes:
        weight = source.weight(node.name)
        q = unpack(node.operands)
        first = 1 if source.stagewise else q.stages
        stage_errors[node.name] = [change_of(weight, _first_stages(q, n)) for n in range(first, q.stages + 1)]
        if node.name in drawn:
            constellations[node.name] = constellation(node.name, weight, q)
        step(node.name)
    kernel: list[LayerResult] = []
    for result in check_layers(model_file, nodes, ids[None]):
        kernel.append(result)
        step(result.name)
    places = [place_of(node.name) for node in nodes]
    layers = [
        LayerReport(fact, depth, module, stage_errors[fact.name], result)
        for fact, (depth, module), result in zip(facts, places, kernel, strict=True)
    ]
    found = model.logits(ids.tolist())
    step("logits of the model")
    agreement = _agreement(model, found, source if use_torch else None, nodes, ids, notes, step)
    original = None
    if agreement.reference == "torch" and not says_trained(checkpoint.config):
        original = compare(found, torch_logits(source, [], ids), ids)
    if model.folder.kernel is not None:
        notes.append(
            f"The folder says that kernel {model.folder.kernel} is to be run unless another is chosen; what is called default "
            "mode below is kernel lut."
        )
    return ReportData(
        title=model.folder.path.resolve().name,
        source=checkpoint.name,
        source_bytes=checkpoint.weight_bytes(),
        facts=model_facts(model_file, model.context_length),
        layers=layers,
        constellations=[constellations[name] for name in drawn],
        stagewise=source.stagewise,
        calibrated=source.calibrated,
        agreement=agreement,
        notes=notes,
        float_source=original,
    )


def place_of(name: str) -> tuple[int | None, str]:
    """Number of the decoder block and short module name of a layer: ``model.layers.3.mlp.up_proj`` -> (3, "up_proj")."""
    match = _PLACE.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name.rpartition(".")[2])


def constellation(name: str, weight: npt.NDArray[Any], q: QuantizedLinear) -> Constellation:
    """Draw a layer's U, or W without one: a sample of latent entries, and the levels with their shares.

    Args:
        name: of the layer.
        weight: latent [2n, 2m], any float type; of a large matrix only some rows are looked at.
        q: its quantized form.
    """
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(q.n, max(1, min(q.n, _COUNTED // q.m)), replace=False))
    real_rows = np.concatenate([rows, q.n + rows])
    a = weight[real_rows].astype(np.float32)
    if q.row_multiplier is not None:
        a /= q.row_multiplier[real_rows, None]
    if q.col_multiplier is not None:
        a /= q.col_multiplier[None, :]
    plane = 0 if q.scales[:, 0].any() else 1
    re_part, im_part = split_widely_linear(a)[2 * plane : 2 * plane + 2]
    picked = rng.choice(re_part.size, min(_CLOUD_POINTS, re_part.size), replace=False)
    cloud = (re_part.reshape(-1)[picked] + 1j * im_part.reshape(-1)[picked]).astype(np.complex64)
    combined = np.zeros((len(rows), q.m), np.uint8)  # at most 4 stages of 2 bits
    levels = np.zeros(1, np.complex64)
    for stage in range(q.stages):
        combined |= q.codes[stage, plane, rows] << (2 * stage)
        s_re, s_im = q.scales[stage, plane]
        step = (CODE_RE * s_re + 1j * CODE_IM * s_im).astype(np.complex64)
        levels = (step[:, None] + levels[None, :]).reshape(-1)  # later stages in the higher bits
    counts = np.bincount(combined.reshape(-1), minlength=4**q.stages)
    return Constellation(name, cloud, levels, counts / counts.sum())


def _layers_to_draw(names: list[str]) -> list[str]:
    """One layer of every module: that of the middle block, and those outside the blocks."""
    depths = sorted({depth for depth, _ in map(place_of, names) if depth is not None})
    middle = depths[len(depths) // 2] if depths else None
    return [name for name in names if place_of(name)[0] in (None, middle)]


def _first_stages(q: QuantizedLinear, stages: int) -> QuantizedLinear:
    return QuantizedLinear(q.codes[:stages], q.scales[:stages], q.profile, q.row_multiplier, q.col_multiplier)


def _agreement(
    model: Model,
    found: F32,
    source: SourceWeights | None,
    nodes: list[Node],
    ids: npt.NDArray[np.int64],
    notes: list[str],
    step: Step,
) -> Agreement:
    if source is not None and source.has_twin and torch_is_installed():
        reference, logits = "torch", torch_logits(source, nodes, ids)
    else:
        if source is not None:
            missing = (
                "torch and transformers are not installed" if source.has_twin else "transformers has no class for this model"
            )
            notes.append(f"{missing}: logits are compared with the model's exact mode instead.")
        reference, logits = "exact mode", load(model.folder.path, kernel="exact").logits(ids.tolist())
    step("logits of the reference")
    result = agreement(found, logits, ids, model.tokenizer.decode, reference)
    step("agreement")
    return result
