"""The quantizer on GPUs and other devices, which compute while the processor goes on: one kernel for a layer, without waiting.

Formulas one by one are hundreds of passes over a small matrix there, so torch makes one kernel of them. Compiled are the formulas
of torch_quantizer.py themselves, told to round as they do one by one: no multiplication is fused with an addition, divisions are
exact, bfloat16 is rounded to after every step. So the matrix is the same to the bit; gradients of learned scales and multipliers
are sums in another order.

Whether weights are finite is a question that the processor would wait for in every layer. So answers are collected, and read
together: before an optimizer steps (:func:`settle`), or when there are many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from fairy2i_export.errors import WeightError

_SAME_BITS = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
_MANY = 1024  # answers; a model of some hundred layers has so many after a few forward passes
_answers: list[tuple[str, Tensor]] = []  # name of a layer, and a sum [] that is finite if all of its numbers are


def is_compiled(tensor: Tensor) -> bool:
    """Whether functions are compiled for a tensor: on a GPU that torch can compile for."""
    return tensor.is_cuda and has_triton() and not torch.cuda.is_current_stream_capturing()


def goes_on_alone(tensor: Tensor) -> bool:
    """Whether the processor does not wait for what a tensor's device computes."""
    return tensor.device.type != "cpu"


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as one kernel: one for the first shape, and another for all others."""
    known = torch._inductor.list_options()
    made: Callable[..., Any] = torch.compile(
        function, fullgraph=True, options={name: value for name, value in _SAME_BITS.items() if name in known}
    )
    return made


def if_compiled(tensor: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, compiled if :func:`is_compiled`."""
    return compiled(function) if is_compiled(tensor) else function


def sum_of(*values: Tensor | None) -> Tensor:
    """The sum of all numbers of all tensors, float32 []; not finite if one of them is not."""
    return torch.stack([value.sum(dtype=torch.float32) for value in values if value is not None]).sum()


def require_finite(name: str, total: Tensor) -> None:
    """Raise WeightError unless a layer's :func:`sum_of` is finite: at once in main memory, else later, by :func:`settle`."""
    if total.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a graph that is recorded must not wait
    _answers.append((name, total.detach()))
    if not goes_on_alone(total) or len(_answers) >= _MANY:
        settle()


def settle() -> None:
    """Raise WeightError if a layer since the last call held values that are not finite; waits for the devices."""
    answers = list(_answers)
    _answers.clear()
    for device in {total.device for _, total in answers}:
        here = [(name, total) for name, total in answers if total.device == device]
        for (name, _), finite in zip(here, torch.stack([total for _, total in here]).isfinite().tolist(), strict=True):
            if not finite:
                raise diverged(name)


def diverged(name: str) -> WeightError:
    """The error for latent weights that are not finite any more."""
    return WeightError(
        f"{name}: the latent weight, or what is learned with it, holds values that are not finite: training diverged; go back to "
        "an earlier checkpoint, with a lower learning rate, gradient clipping or more warm-up"
    )
