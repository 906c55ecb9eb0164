"""From layer to layer: each is calibrated on what the quantized layers before it produce.

Hidden states of the quantized model go through the decoder, and beside them those of the float model where layers make up for
what earlier ones changed (COMPENSATION); where they do not, the float model is not computed.

Linear layers of a decoder layer that read the same input form a group; the groups are calibrated in the order in which they
are computed, so that ``o_proj`` sees what the quantized ``q_proj``, ``k_proj`` and ``v_proj`` lead to. In memory are one or two
copies of one decoder layer, the hidden states of the whole text, and the metric of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.compile.calibrate.matrix import calibrate_matrix
from fairy2i_export.compile.calibrate.metric import Statistics
from fairy2i_export.compile.calibrate.skeleton import Call, Skeleton, run_layer
from fairy2i_export.compile.calibrate.store import LayerStore
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.source.checkpoint import Checkpoint

BATCH = 4  # windows that go through a layer together
# share of what earlier layers changed that a layer makes up for, by stages; at 4 it brought nothing (docs/quality.md)
COMPENSATION = {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.0}


class _Reached(Exception):
    """The group's input is known; the rest of the layer need not be computed."""


def calibrate_layers(
    skeleton: Skeleton,
    linears: Mapping[str, Linear],
    ids: Any,
    store: LayerStore,
    advance: Callable[[int], None],
) -> None:
    """Calibrate every linear layer in ``linears`` that lies in a decoder layer, and lm_head if it is among them.

    Args:
        skeleton: of the source.
        linears: those to quantize, by module name, each with its number of stages.
        ids: int64 [windows, length].
        store: finished layers, which are not made again, and where new ones go.
        advance: called with the number of parameters that are done.
    """
    import torch

    with torch.no_grad():
        hidden, calls = skeleton.begin(ids)
        quantized = torch.cat(hidden)
        exact = quantized.clone() if any(COMPENSATION[x.stages] for x in linears.values()) else None
        for index, call in enumerate(calls):
            prefix = f"model.layers.{index}."
            names = {name.removeprefix(prefix): linear for name, linear in linears.items() if name.startswith(prefix)}
            layer = skeleton.layer(index)
            streams = [(layer, quantized)]
            if exact is not None:
                streams.append((skeleton.layer(index), exact))
            found = store.read(index)
            if found is None:
                found = {}
                for group in _groups(layer, list(names), quantized[:1], call):
                    found.update(_calibrate_group(group, streams, call, names, skeleton.checkpoint))
                    _replace(layer, {name: found[names[name].name] for name in group})
                store.write(index, found)
            else:
                _replace(layer, {name: found[linear.name] for name, linear in names.items()})
            for module, states in streams:
                for part in _batches(states):
                    states[part] = run_layer(module, states[part], call)
            advance(sum(linear.parameters for linear in names.values()))
        _calibrate_head(skeleton, linears, quantized, exact, store, len(calls), advance)


def _calibrate_head(
    skeleton: Skeleton,
    linears: Mapping[str, Linear],
    quantized: Any,
    exact: Any | None,
    store: LayerStore,
    index: int,
    advance: Callable[[int], None],
) -> None:
    """lm_head, on what the final norm gives."""
    import torch

    head = linears.get("lm_head")
    if head is None:
        return
    if store.read(index) is None:
        norm = skeleton.module("model.norm")
        statistics = Statistics(head.in_features, paired=exact is not None)
        for part in _batches(quantized):
            statistics.add(norm(quantized[part]), None if exact is None else norm(exact[part]))
        weight = skeleton.tensor(head.name, tensor=head.weight)
        metric = statistics.metric(head.name, COMPENSATION[head.stages])
        done = calibrate_matrix(torch.from_numpy(weight), metric, head.stages)
        source = skeleton.checkpoint.read(head.weight)
        store.write(index, {head.name: CalibratedLinear.of(source, done.linear, done.error)})
    advance(head.parameters)


def _calibrate_group(
    group: list[str],
    streams: list[tuple[Any, Any]],
    call: Call,
    linears: Mapping[str, Linear],
    checkpoint: Checkpoint,
) -> dict[str, CalibratedLinear]:
    """The layers of a group, by their names in the model.

    Args:
        group: names inside the decoder layer.
        streams: the decoder layer as far as it is quantized with its hidden states, and the float model's, if it is needed.
        call: of the decoder layer.
        linears: by name inside the decoder layer.
        checkpoint: the source, whose own bytes the results are known by.
    """
    layer, quantized = streams[0]
    first = linears[group[0]]
    statistics = Statistics(first.in_features, paired=len(streams) > 1)
    for part in _batches(quantized):
        statistics.add(*(_input_of(module, group[0], states[part], call) for module, states in streams))
    shares = sorted({COMPENSATION[linears[name].stages] for name in group})
    metrics = {share: statistics.metric(first.name, share) for share in shares}
    found = {}
    for name in group:
        stages = linears[name].stages
        weight = layer.get_submodule(name).weight  # not quantized yet: the group is replaced when all of it is done
        done = calibrate_matrix(weight, metrics[COMPENSATION[stages]], stages)
        source = checkpoint.read(linears[name].weight)
        found[linears[name].name] = CalibratedLinear.of(source, done.linear, done.error)
    return found


def _groups(layer: Any, names: list[str], hidden: Any, call: Call) -> list[list[str]]:
    """Those of the named modules that get the same tensor, in the order in which they are called."""
    seen: list[tuple[Any, list[str]]] = []

    def noting(name: str) -> Callable[..., None]:
        def note(module: Any, inputs: tuple[Any, ...]) -> None:
            for tensor, group in seen:
                if tensor is inputs[0]:
                    group.append(name)
                    return
            seen.append((inputs[0], [name]))

        return note

    hooks = [layer.get_submodule(name).register_forward_pre_hook(noting(name)) for name in names]
    try:
        run_layer(layer, hidden, call)
    finally:
        for hook in hooks:
            hook.remove()
    return [group for _, group in seen]


def _input_of(layer: Any, name: str, hidden: Any, call: Call) -> Any:
    """What a module inside a layer is called with."""
    caught: list[Any] = []

    def catch(module: Any, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise _Reached

    hook = layer.get_submodule(name).register_forward_pre_hook(catch)
    try:
        run_layer(layer, hidden, call)
    except _Reached:
        pass
    finally:
        hook.remove()
    return caught[0]


def _replace(layer: Any, found: Mapping[str, CalibratedLinear]) -> None:
    """Put the matrices that the operator will multiply by into a layer."""
    import torch

    for name, linear in found.items():
        layer.get_submodule(name).weight.data = torch.from_numpy(linear.quantized.dequantize("none"))


def _batches(states: Any) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, len(states), BATCH))
