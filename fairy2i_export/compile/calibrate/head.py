"""lm_head: its codes are chosen like those of the layers, on what the final norm gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.codes.native import F32
from fairy2i_export.compile.calibrate.matrix.aim import Ridge
from fairy2i_export.compile.calibrate.matrix.calibrate import calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.damping import trusted_metric
from fairy2i_export.compile.calibrate.matrix.metric import HALVES, Statistics
from fairy2i_export.compile.calibrate.streams import advance, halves, outer_products
from fairy2i_export.compile.calibrate.walk import Walk
from fairy2i_export.compile.earlier import EarlierExport


def calibrate_head(walk: Walk, quantized: Any, exact: Any, norms: Mapping[str, F32], done: Callable[[int], None]) -> None:
    """Calibrate lm_head, if it is among the layers to quantize and not in the store yet.

    Args:
        walk: what is calibrated.
        quantized: hidden states of the quantized model after the last layer, torch float32 [windows, length, hidden].
        exact: likewise of the float model.
        norms: weights of norms by tensor name that the quantized model has of its own.
        done: called with the number of parameters that are done.
    """
    import torch

    head, skeleton, name = walk.linears.get(walk.decoder.names.lm_head), walk.skeleton, walk.decoder.names.final_norm
    if head is None:
        return
    if walk.store.read(skeleton.layers) is None:
        with torch.no_grad():
            original, norm = skeleton.module(name), skeleton.module(name)
            _put_norms(norm, name, norms)
            statistics = Statistics(head.in_features)
            cross = torch.zeros((HALVES, head.in_features, head.in_features))
            for half, part in halves(quantized):
                inputs = norm(quantized[part])
                statistics.add(inputs, half)
                cross[half] += outer_products(original(exact[part]) - inputs, inputs)
            weight = torch.from_numpy(skeleton.tensor(head.name, tensor=head.weight))
            (aim,) = Ridge(statistics).aims([weight], [weight @ cross])
            metric = trusted_metric(statistics, head.name, aim, head.stages)
            made = calibrate_matrix(aim, metric, head.stages, walk.sweeps)
        source = skeleton.checkpoint.read(head.weight)
        walk.store.write(skeleton.layers, {head.name: CalibratedLinear.of(source, made.linear, made.error)})
    done(head.parameters)


def states_of(walk: Walk, earlier: EarlierExport, ids: Any, done: Callable[[], None]) -> tuple[Any, Any]:
    """Hidden states after the last layer, of the model that an earlier export holds and of the float model.

    Args:
        walk: the source; what it is to calibrate does not matter.
        earlier: whose layers and norms are taken.
        ids: int64 [windows, length].
        done: called after every decoder layer.

    Returns:
        Two of torch float32 [windows, length, hidden].
    """
    import torch

    skeleton, norms = walk.skeleton, earlier.norms(walk.decoder.norm_offset)
    with torch.no_grad():
        hidden, calls = skeleton.begin(ids)
        quantized = torch.cat(hidden)
        exact = quantized.clone()
        for index, call in enumerate(calls):
            layer, name = skeleton.layer(index), f"model.layers.{index}"
            advance(layer, exact, call)
            for inside, module in layer.named_modules():
                if f"{name}.{inside}" in earlier.nodes:
                    dense = earlier.linear(f"{name}.{inside}").quantized.dequantize("none")
                    module.weight.data = torch.from_numpy(dense)
            _put_norms(layer, name, norms)
            advance(layer, quantized, call)
            done()
    return quantized, exact


def _put_norms(module: Any, name: str, norms: Mapping[str, F32]) -> None:
    """Give a module of that name those weights of norms that belong to it."""
    import torch

    for inside, parameter in module.named_parameters():
        if (own := norms.get(f"{name}.{inside}")) is not None:
            parameter.data = torch.from_numpy(own)
