"""From layer to layer: each is calibrated on what the quantized layers before it produce.

Hidden states of the quantized model go through the decoder, and beside them those of the float model (streams.py), whose
outputs every layer aims at (aim.py).

Linear layers of a decoder layer that read the same input form a group; the groups are calibrated in the order in which they
are computed, so that ``o_proj`` sees what the quantized ``q_proj``, ``k_proj`` and ``v_proj`` lead to. In memory are two copies of
one decoder layer, the hidden states of the whole text, what the modules of one float layer and attention's end of the quantized
one read, and one group's statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.compile.calibrate.growing_layer import GrowingLayer
from fairy2i_export.compile.calibrate.matrix.aim import Ridge
from fairy2i_export.compile.calibrate.matrix.attention import output_grams
from fairy2i_export.compile.calibrate.matrix.calibrate import calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.coupling import Coupling
from fairy2i_export.compile.calibrate.matrix.damping import trusted_metric
from fairy2i_export.compile.calibrate.matrix.metric import HALVES, Statistics
from fairy2i_export.compile.calibrate.skeleton import Call, Skeleton, run_layer
from fairy2i_export.compile.calibrate.store import LayerStore
from fairy2i_export.compile.calibrate.streams import LAYER, FloatLayer, advance, halves, listening, outer_products, products
from fairy2i_export.decoder.description import Decoder, Names
from fairy2i_export.onnx_graph.formats.base import Linear


@dataclass(frozen=True)
class Walk:
    """What is calibrated, and how.

    Attributes:
        skeleton: of the source.
        decoder: its description.
        linears: the layers to quantize, by module name, each with its number of stages.
        store: finished layers, which are not made again, and where new ones go.
        sweeps: of annealing over the codes of a matrix.
    """

    skeleton: Skeleton
    decoder: Decoder
    linears: Mapping[str, Linear]
    store: LayerStore
    sweeps: int


def calibrate_layers(walk: Walk, ids: Any, done: Callable[[int], None]) -> tuple[Any, Any]:
    """Calibrate every linear layer that lies in a decoder layer.

    Args:
        walk: what is calibrated.
        ids: int64 [windows, length].
        done: called with the number of parameters that are done.

    Returns:
        Hidden states after the last layer, of the quantized model and of the float model: torch float32 [windows, length, hidden].
    """
    import torch

    with torch.no_grad():
        quantized, calls = walk.skeleton.begin(ids)
        exact = quantized.clone()
        for index, call in enumerate(calls):
            prefix = _prefix(index)
            names = {name.removeprefix(prefix): linear for name, linear in walk.linears.items() if name.startswith(prefix)}
            _pass_layer(walk, index, call, names, quantized, exact)
            done(sum(linear.parameters for linear in names.values()))
    return quantized, exact


def _pass_layer(walk: Walk, index: int, call: Call, names: Mapping[str, Linear], quantized: Any, exact: Any) -> None:
    """Calibrate a decoder layer, if it is not in the store yet, and take the hidden states of both models through it, in place.

    Nothing of it stays in memory: what is kept of the text's activations is several times as large as hidden states.

    Args:
        walk: what is calibrated.
        index: of the decoder layer.
        call: of it.
        names: the layers to quantize in it, by their names inside of it.
        quantized: torch float32 [windows, length, hidden], before the layer; become those after it.
        exact: likewise of the float model.
    """
    layer = walk.skeleton.layer(index)
    original = copy.deepcopy(layer)
    found = walk.store.read(index)
    if found is not None:
        _replace(layer, {name: found[linear.name] for name, linear in names.items()})
        advance(original, exact, call)
        advance(layer, quantized, call)
        return
    found = {}
    groups = _groups(layer, list(names), quantized[:1], call)
    inside = walk.decoder.names.inside
    residuals = {group[0]: _residual(inside, group[0]) for group in groups}
    modules = dict.fromkeys([*residuals, *(name for name in residuals.values() if name is not None)])
    read = FloatLayer(original, list(modules), exact, call)
    growing = GrowingLayer(layer, quantized, call, [inside.o, inside.down])
    for group in groups:
        couplings = _couplings(walk, group, growing)
        found.update(_calibrate_group(walk, group, residuals[group[0]], growing, read, names, couplings))
        _replace(layer, {name: found[names[name].name] for name in group})
    walk.store.write(index, found)
    growing.advance()


def _prefix(index: int) -> str:
    return f"model.layers.{index}."


def _calibrate_group(
    walk: Walk,
    group: list[str],
    residual: str | None,
    growing: GrowingLayer,
    read: FloatLayer,
    linears: Mapping[str, Linear],
    couplings: Mapping[str, Coupling],
) -> dict[str, CalibratedLinear]:
    """The layers of a group, by their names in the model.

    Args:
        walk: what is calibrated.
        group: names inside the decoder layer.
        residual: the module that reads what the group's outputs are added to, if there is one; such a group has one layer.
        growing: the decoder layer as far as it is quantized.
        read: what the float layer's modules read; forgets those of this group.
        linears: by name inside the decoder layer.
        couplings: of the outputs of those layers that have such, by name inside the decoder layer.
    """
    import torch

    layer = growing.layer
    first = linears[group[0]]
    modules = [group[0]] if residual is None else [residual, group[0]]
    weight = layer.get_submodule(group[0]).weight  # not quantized yet: the group is replaced when all of it is done
    statistics = Statistics(first.in_features)
    # of differences of inputs, or, where there is a residual, of what is missing to outputs
    cross = torch.zeros((HALVES, first.in_features if residual is None else first.out_features, first.in_features))
    for half, part in halves(growing.states):
        got = growing.inputs(modules, part)
        statistics.add(got[-1], half)
        difference = read.inputs(group[0], part) - got[-1]
        if residual is not None:
            with products():
                difference = difference @ weight.T
            difference = difference.float() + (read.inputs(residual, part) - got[0])
        cross[half] += outer_products(difference, got[-1])
    read.forget(modules)
    weights = [layer.get_submodule(name).weight for name in group]
    metric = trusted_metric(statistics, first.name, weight, first.stages)  # refuses inputs that are not finite
    aims = Ridge(statistics).aims(weights, [cross] if residual is not None else [weight @ cross for weight in weights])
    found = {}
    for name, aim in zip(group, aims, strict=True):
        linear = linears[name]
        made = calibrate_matrix(aim, metric, linear.stages, walk.sweeps, linear.name, couplings.get(name))
        source = walk.skeleton.checkpoint.read(linear.weight)
        found[linear.name] = CalibratedLinear.of(source, made.linear, made.error)
    return found


def _couplings(walk: Walk, group: Sequence[str], growing: GrowingLayer) -> dict[str, Coupling]:
    """What the outputs of q_proj and k_proj are worth, by name inside the decoder layer, if they are in this group and annealed."""
    inside = walk.decoder.names.inside
    found = [name for name in group if name in (inside.q, inside.k)]
    if not found or not walk.sweeps:
        return {}
    grams = output_grams(growing.layer, found, inside.o, growing.states, growing.call)
    couplings = {name: Coupling.of(gram) for name, gram in grams.items()}
    return {name: coupling for name, coupling in couplings.items() if coupling is not None}


def _residual(inside: Names, module: str) -> str | None:
    """The module that reads the stream which a module's outputs are added to; None if they go elsewhere first."""
    if module == inside.o and inside.attention_post_norm is None:
        return LAYER
    if module == inside.down and inside.mlp_post_norm is None:
        return inside.mlp_norm
    return None


def _groups(layer: Any, names: Sequence[str], hidden: Any, call: Call) -> list[list[str]]:
    """Those of the named modules that get the same tensor, in the order in which they are called."""
    seen: list[tuple[Any, list[str]]] = []

    def note(name: str, inputs: Any) -> None:
        for tensor, group in seen:
            if tensor is inputs:
                group.append(name)
                return
        seen.append((inputs, [name]))

    with listening(layer, names, note):
        run_layer(layer, hidden, call)
    return [group for _, group in seen]


def _replace(layer: Any, found: Mapping[str, CalibratedLinear]) -> None:
    """Put the matrices that the operator will multiply by into a layer."""
    import torch

    for name, linear in found.items():
        layer.get_submodule(name).weight.data = torch.from_numpy(linear.quantized.dequantize("none"))
