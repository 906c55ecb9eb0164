"""The names of the published training code, for scripts that were written against it.

    from fairy2i_export.train.compat import convert_to_inference_mode, replace_modules_for_qat

As there, arithmetic follows the type of the weights: bfloat16 weights are quantized with rounding to bfloat16 after every
step (profile ``bf16-reference``), others without (``fp32``). What differs: (a, a) entries exactly on a sector border always
go to the imaginary axis, and inference weights are made at once instead of in the first forward pass.
"""

from __future__ import annotations

import torch
from torch import nn

from fairy2i_export.errors import OptionError
from fairy2i_export.train.qat.options import QuantizationOptions
from fairy2i_export.train.qat.prepare import convert, prepare

COMPLEX_PHASE = {f"complex_phase_v{stages}": stages for stages in (1, 2, 3, 4)}
METHOD_NAMES = ("bitnet", *COMPLEX_PHASE)


def replace_modules_for_qat(model: nn.Module, method: str, skip_lm_head: bool = False) -> None:
    """Make the linear layers of ``model`` quantize, in place; those with odd dimensions stay as they are.

    Args:
        model: any module.
        method: ``complex_phase_v1`` to ``complex_phase_v4`` (1 to 4 stages) or ``bitnet`` (binary).
        skip_lm_head: leave ``lm_head``; else a weight that it shares with the embedding is copied.

    Raises:
        OptionError: an unknown method.
    """
    if method not in METHOD_NAMES:
        raise OptionError(f"method: expected one of {', '.join(METHOD_NAMES)}, got {method!r}")
    linear = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    profile = "bf16-reference" if linear is not None and linear.weight.dtype == torch.bfloat16 else "fp32"
    options = QuantizationOptions(
        method="binary" if method == "bitnet" else "fairy2i",
        stages=COMPLEX_PHASE.get(method, 2),
        profile=profile,  # type: ignore[arg-type]
    )
    prepare(model, options, skip_lm_head=skip_lm_head)


def convert_to_inference_mode(model: nn.Module) -> nn.Module:
    """Give all quantizing layers their dequantized weight for good, in place, and return the model."""
    return convert(model)
