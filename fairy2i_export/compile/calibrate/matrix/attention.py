"""What errors of queries and keys cost: the metric of their outputs, by what attention makes of them.

A query is only seen through its products with keys, a key through those with queries, and most of these are too small beside
others for the softmax to care. So there are few directions in which an error of a head's queries matters, and codes can be
chosen to have little of it there (docs/quality.md, "Queries and keys"). Values and the layers of the MLP have such directions
less clearly: codes chosen with a metric of their outputs, the gradients of the predictions, gained little there or lost.

The metric is the Gauss-Newton one of the outputs of attention, the sum over tokens of ``J^T J`` with J what the outputs of o_proj
move by when a token's query or key moves. It is estimated: for random signs s at all outputs together, ``J^T s`` is one pass
backward, and the mean of ``(J^T s) (J^T s)^T`` is ``J^T J``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairy2i_export.compile.calibrate.skeleton import Call
from fairy2i_export.compile.calibrate.streams import reach

TOKENS = 8192  # of the text, evenly spread: a few times as many as a matrix has outputs


def output_grams(layer: Any, modules: Sequence[str], end: str, states: Any, call: Call) -> dict[str, Any]:
    """Sums of outer products of what outputs are worth, by module: torch float32 [outputs, outputs].

    Args:
        layer: the decoder layer, float as far as these modules and what they lead to are concerned.
        modules: names inside the layer, of q_proj and k_proj.
        end: name inside the layer of o_proj, whose outputs count.
        states: torch float32 [windows, length, hidden], before the layer.
        call: of the layer.
    """
    import torch

    found: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    count = min(len(states), -(-TOKENS // states.shape[1]))
    given: dict[str, Any] = {}

    def give(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            given[name] = output.detach().requires_grad_()
            return given[name]

        return hook

    hooks = [layer.get_submodule(name).register_forward_hook(give(name)) for name in modules]
    try:
        for index in range(count):
            window = index * len(states) // count
            with torch.enable_grad():
                (read,) = reach(layer, [end], states[window : window + 1], call)
                outputs = layer.get_submodule(end)(read)
                signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs.dtype) * 2 - 1
                gradients = torch.autograd.grad(outputs, [given[name] for name in modules], signs)
            for name, gradient in zip(modules, gradients, strict=True):
                rows = gradient.reshape(-1, gradient.shape[-1]).float()
                found[name] = found.get(name, 0) + rows.T @ rows
    finally:
        for handle in hooks:
            handle.remove()
    return found
