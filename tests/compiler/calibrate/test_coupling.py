"""Codes that are chosen for the errors of all outputs together, and what attention says about those of queries and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check

from architecture_helpers import save_tiny
from fairy2i_export.compile.calibrate.matrix.annealing import anneal
from fairy2i_export.compile.calibrate.matrix.attention import output_grams
from fairy2i_export.compile.calibrate.matrix.calibrate import calibrate_matrix
from fairy2i_export.compile.calibrate.matrix.coupling import Coupling, anneal_together
from fairy2i_export.compile.calibrate.matrix.feedback import Candidate, feed_back
from fairy2i_export.compile.calibrate.matrix.fit import start
from fairy2i_export.compile.calibrate.matrix.metric import Metric, Statistics
from fairy2i_export.compile.calibrate.skeleton import Skeleton
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.source.checkpoint import open_checkpoint

OUTPUTS, INPUTS = 96, 64


def problem() -> tuple[Any, Metric, Any]:
    """A matrix, the metric of its inputs, and sums of outer products of a few directions that its outputs count in."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1000, INPUTS)) @ rng.standard_normal((INPUTS, INPUTS))
    statistics = Statistics(INPUTS)
    for half in range(2):
        statistics.add(torch.from_numpy(inputs[half::2].astype(np.float32)), half)
    directions = rng.standard_normal((500, 12)) @ rng.standard_normal((12, OUTPUTS)) * rng.uniform(0.3, 2, OUTPUTS)
    weight = torch.from_numpy(rng.standard_normal((OUTPUTS, INPUTS)).astype(np.float32))
    return weight, statistics.metric("a layer"), torch.from_numpy((directions.T @ directions).astype(np.float32))


def cost(weight: Any, metric: Metric, gram: Any, found: Any) -> float:
    """tr(G E H E^T), in float64 and in the order of the file."""
    error = (torch.from_numpy(found.dequantize("none")) - weight).double()[:, torch.from_numpy(metric.columns)]
    return float(((gram.double() @ error @ metric.hessian.double()) * error).sum())


def coupling_of(gram: Any) -> Coupling:
    found = Coupling.of(gram)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [3e38, float("inf"), float("nan")])
def test_there_is_none_where_sums_overflow(size: float) -> None:
    _, _, gram = problem()
    gram[3, 3] = gram[5, 5] = size
    assert Coupling.of(gram) is None


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_what_outputs_count_in_gets_less_error(stages: int) -> None:
    weight, metric, gram = problem()
    apart = calibrate_matrix(weight, metric, stages, 24)
    together = calibrate_matrix(weight, metric, stages, 24, "a layer", coupling_of(gram))
    assert cost(weight, metric, gram, together.linear) < 0.6 * cost(weight, metric, gram, apart.linear)
    again = calibrate_matrix(weight, metric, stages, 24, "a layer", coupling_of(gram))
    assert np.array_equal(again.linear.codes, together.linear.codes)


def candidate_of(target: Any, metric: Metric) -> Candidate:
    found = start(target, metric, 2)
    feed_back(target, metric, found)
    return found


def test_outputs_that_have_nothing_to_do_with_each_other_are_worked_on_as_ever() -> None:
    weight, metric, _ = problem()
    coupling = Coupling(torch.arange(OUTPUTS), torch.ones(OUTPUTS), torch.eye(OUTPUTS), 16)
    target = coupling.scaled(weight).T[torch.from_numpy(metric.columns)].contiguous()
    one, other = candidate_of(target, metric), candidate_of(target, metric)
    cold = np.zeros((3, OUTPUTS // 2), np.float32)
    pull = metric.hessian @ (target - torch.from_numpy(one.dense))
    anneal(pull, metric, one, cold, seed=1)
    anneal_together(pull, coupling, metric, other, cold, seed=1)
    assert np.array_equal(one.codes, other.codes)


def test_sweeps_without_noise_lower_the_error_of_all_outputs_together() -> None:
    weight, metric, gram = problem()
    coupling = coupling_of(gram)
    target = coupling.scaled(weight).T[torch.from_numpy(metric.columns)].contiguous()
    candidate = candidate_of(target, metric)
    losses = []
    for seed in range(4):
        pull = metric.hessian @ (target - torch.from_numpy(candidate.dense))
        losses.append(float(((target - torch.from_numpy(candidate.dense)) * (pull @ coupling.matrix)).sum()))
        anneal_together(pull, coupling, metric, candidate, np.zeros((1, OUTPUTS // 2), np.float32), seed)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_rows_come_back_in_their_order() -> None:
    weight, metric, gram = problem()
    coupling = coupling_of(gram)
    assert sorted(coupling.rows.tolist()) == list(range(OUTPUTS))
    assert torch.equal(
        coupling.rows[OUTPUTS // 2 :], coupling.rows[: OUTPUTS // 2] + OUTPUTS // 2
    )  # complex rows stay whole
    found = calibrate_matrix(weight, metric, 4, 8, "a layer", coupling).linear
    error = torch.from_numpy(found.dequantize("none")) - weight
    assert float(error.square().sum(1).max()) < float(weight.square().sum(1).min())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_the_metric_of_queries_and_keys_is_that_of_what_attention_gives(tmp_path: Path, kind: str) -> None:
    """Beside J^T J of all elements, by as many passes backward as there are outputs."""
    checkpoint = open_checkpoint(save_tiny(tmp_path, kind))
    decoder = describe(checkpoint.config)
    skeleton = Skeleton(checkpoint, decoder, None)
    ids = np.tile(np.random.default_rng(0).integers(0, 80, (4, 6)), (340, 1))  # the same four windows, with many signs
    states, calls = skeleton.begin(ids)
    layer = skeleton.layer(1)
    with torch.no_grad():
        grams = output_grams(layer, ["self_attn.q_proj", "self_attn.k_proj"], "self_attn.o_proj", states, calls[1])
    attention, seen = layer.self_attn, {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, key=key: seen.update({key: inputs[0]}))
        for key, module in (("q", attention.q_proj), ("o", attention.o_proj))
    ]
    expected: dict[str, Any] = {}
    jacobian: Any = torch.autograd.functional.jacobian
    for window in range(4):
        for name in ("q_proj", "k_proj"):
            projection = getattr(attention, name)

            def outputs(change: Any, projection: Any = projection, window: int = window) -> Any:
                hook = projection.register_forward_hook(lambda module, inputs, output: output + change)
                layer(states[window : window + 1], *calls[1].args, **calls[1].kwargs)
                hook.remove()
                return attention.o_proj(seen["o"])[0]

            zero = torch.zeros(1, ids.shape[1], projection.out_features)
            moved = jacobian(outputs, zero)  # [length, hidden, 1, length, outputs]
            moved = moved.flatten(0, 2).flatten(0, -2)
            expected[name] = expected.get(name, 0) + moved.T @ moved
    for hook in hooks:
        hook.remove()
    for name, wanted in expected.items():
        found = grams[f"self_attn.{name}"] / 340
        assert float((found - wanted).norm() / wanted.norm()) < 0.25  # found: 0.1 to 0.16, by chance
        assert float(found.trace() / wanted.trace()) == pytest.approx(1, abs=0.05)
