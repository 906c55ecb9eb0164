"""lm_head: its codes are chosen like those of the layers, on what the final norm gives, and for the tokens that are likely.

An error d of the logits changes the predictions p, to second order, by ``KL = 1/2 (sum of p_i d_i^2 - (sum of p_i d_i)^2)``: a row
of lm_head matters as much as its token is likely and not certain, ``p_i (1 - p_i)`` on average. That differs by orders of magnitude
between tokens, and a vocabulary is roughly in the order of their frequency, so that the two real rows i and i + n of a complex one
are a frequent token and a rare one. They share their codes, and the search gives most of what these can tell to the row with the
greater weight: with 2 stages, there are 256 combinations of U and W for its two entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.codes.native import F32
from fairy2i_export.compile.calibrate.matrix.calibrate import Calibrated, calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.damping import trusted_metric
from fairy2i_export.compile.calibrate.matrix.metric import Statistics
from fairy2i_export.compile.calibrate.streams import advance, halves
from fairy2i_export.compile.calibrate.walk import Walk
from fairy2i_export.compile.earlier import EarlierExport
from fairy2i_export.onnx_graph.formats.base import Linear

TEMPER = 0.5  # exponent of how much a row matters: what a short text says of single tokens is not to be trusted altogether
_DOUBT = 0.01  # of the mean, added to how much every row matters
_TOKENS = 4096  # of the text, evenly spread, whose predictions are looked at
_AT_A_TIME = 256


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
            for half, part in halves(quantized):
                statistics.add(norm(quantized[part]), half)
            weight = torch.from_numpy(skeleton.tensor(head.name, tensor=head.weight))
            matters = sensitivity(original(_evenly(exact)), weight, walk.decoder.logits_softcap)
            made = calibrate_rows(weight, statistics, head, matters, walk.sweeps)
        source = skeleton.checkpoint.read(head.weight)
        walk.store.write(skeleton.layers, {head.name: CalibratedLinear.of(source, made.linear, made.error)})
    done(head.parameters)


def sensitivity(states: Any, weight: Any, softcap: float | None) -> Any:
    """How far an error of each logit moves the predictions: the mean of p (1 - p), torch float32 [vocabulary].

    Args:
        states: torch float32 [tokens, hidden], after the final norm.
        weight: lm_head, torch float32 [vocabulary, hidden].
        softcap: of the logits, or None.
    """
    import torch

    total = torch.zeros(len(weight))
    for part in states.split(_AT_A_TIME):
        logits, slope = part @ weight.T, torch.ones(())
        if softcap is not None:
            bent = torch.tanh(logits / softcap)
            logits, slope = softcap * bent, 1 - bent * bent
        likely = logits.softmax(-1)
        total += (likely * (1 - likely) * slope * slope).sum(0)
    return total / len(states)


def calibrate_rows(aim: Any, statistics: Statistics, linear: Linear, matters: Any, sweeps: int) -> Calibrated:
    """Quantize a matrix some of whose rows matter more.

    Args:
        aim: torch float32 [2n, 2m], the matrix to come near to.
        statistics: of its inputs.
        linear: its name and stages.
        matters: torch float32 [2n], how much an error of each output costs; not negative.
        sweeps: of annealing.
    """
    weights = ((matters + _DOUBT * (float(matters.mean()) or 1.0)) ** TEMPER).sqrt()
    weights /= weights.mean()
    scaled = aim * weights[:, None]  # the search knows no weights of rows, and needs none: an error is scaled as its row is
    metric = trusted_metric(statistics, linear.name, scaled, linear.stages)
    made = calibrate_matrix(scaled, metric, linear.stages, sweeps, linear.name)
    assert made.linear.row_multiplier is not None
    rows = made.linear.row_multiplier / weights.numpy()
    return replace(made, linear=replace(made.linear, row_multiplier=rows.astype(np.float32)))


def _evenly(states: Any) -> Any:
    """Some tokens [tokens, hidden] of hidden states [windows, length, hidden]."""
    rows = states.reshape(-1, states.shape[-1])
    return rows[:: -(-len(rows) // _TOKENS)]


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
        quantized, calls = skeleton.begin(ids)
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
