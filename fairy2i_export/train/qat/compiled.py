"""The quantizer on GPUs, where its formulas one by one are hundreds of passes over a small matrix: torch makes one kernel of them.

Compiled are the formulas of torch_quantizer.py themselves, told to round as they do one by one: no multiplication is fused
with an addition, divisions are exact, bfloat16 is rounded to after every step. So the matrix is the same to the bit; gradients
of learned scales and multipliers are sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.train.qat.options import QuantizationOptions

_SAME_BITS = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
_MOST_STAGES = 3  # of a joint search: at four, a kernel would be 256 distances long


def is_compiled(weight: Tensor, options: QuantizationOptions) -> bool:
    """Whether the functions of this module do a weight: on a GPU that torch can compile for, stages that are not too many."""
    if not weight.is_cuda or not has_triton() or (torch.cuda.is_current_stream_capturing()):
        return False
    return options.stages <= _MOST_STAGES or not STRATEGIES[options.quantizer].jointly


@lru_cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as one kernel: one for the first shape, and another for all others."""
    known = torch._inductor.list_options()
    made: Callable[..., Any] = torch.compile(
        function, fullgraph=True, options={name: value for name, value in _SAME_BITS.items() if name in known}
    )
    return made
