"""From a latent weight to the dequantized one that the forward pass uses, with a straight-through gradient.

In main memory the exporter's C library does it; on other devices, and in graphs that are exported, torch_quantizer.py, equal
to it bit for bit. torch.compile sees an opaque operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairy2i_export.codes.strategies import STRATEGIES
from fairy2i_export.errors import OptionError, WeightError
from fairy2i_export.train.qat import baselines, native_quantizer, torch_quantizer
from fairy2i_export.train.qat.devices import diverged, if_compiled, require_finite, sum_of
from fairy2i_export.train.qat.gradients import gradients_of_learned
from fairy2i_export.train.qat.options import QuantizationOptions

_WRITTEN = (torch.float32, torch.bfloat16)  # result types of the C library
_READ = (*_WRITTEN, torch.float16)


def fake_quantize(
    weight: Tensor,
    options: QuantizationOptions,
    *,
    rows: Tensor | None = None,
    scales: Tensor | None = None,
    columns: Tensor | None = None,
    dtype: torch.dtype | None = None,
    made: Tensor | None = None,
    name: str = "weight",
) -> Tensor:
    """The dequantized weight [out, in] of a latent one; the gradient of the former becomes that of the latter, bit for bit.

    Args:
        weight: latent weight [out, in].
        options: how to quantize.
        rows: learned row multipliers [out]; their gradient takes the rounding error relative to the row for constant.
        scales: learned scales [stages, 2 (U, W), 2 (re, im)]; their gradient takes the codes for constant.
        columns: learned column multipliers [in]; their gradient is like that of the rows.
        dtype: of the result, by default the weight's.
        made: :func:`dequantize` of these arguments, if it is known already.
        name: how to call the weight in messages.

    Raises:
        WeightError: values that are not finite.
    """
    with torch.no_grad():
        dense = made
        if dense is None:
            dense = dequantize(weight, options, rows=rows, scales=scales, columns=columns, dtype=dtype, name=name)
    if torch.compiler.is_exporting():
        return dense  # graphs for inference: nothing to differentiate
    if rows is None and scales is None and columns is None:
        straight: Tensor = _StraightThrough.apply(weight, dense)  # type: ignore[no-untyped-call]
        return straight
    learned: Tensor = _LearnedThrough.apply(weight, dense, rows, scales, columns, options)  # type: ignore[no-untyped-call]
    return learned


def dequantize(
    weight: Tensor,
    options: QuantizationOptions,
    *,
    rows: Tensor | None = None,
    scales: Tensor | None = None,
    columns: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    name: str = "weight",
) -> Tensor:
    """The matrix that the model computes with, without gradient.

    Args:
        weight: as for :func:`fake_quantize`.
        options: as there.
        rows: as there.
        scales: as there.
        columns: as there.
        dtype: of the result, by default the weight's.
        out: where to write it, if possible; a contiguous tensor of that type and shape.
        name: as there.

    Raises:
        WeightError: values that are not finite; a weight that is sharded.
    """
    dtype = weight.dtype if dtype is None else dtype
    if type(weight).__name__ == "DTensor":
        raise WeightError(
            f"{name}: the weight is a shard (DTensor), and scales need the whole matrix; wrap the module with fully_shard so "
            "that its weight is gathered before the forward pass; tensor parallelism is not supported"
        )
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        values = (options.method, options.stages, options.profile, options.quantizer, options.row_multiplier)
        return torch.ops.fairy2i.dequantize(weight, rows, scales, columns, *values, name).to(dtype)  # type: ignore[no-any-return]
    with torch.no_grad():
        if options.method != "fairy2i":
            dense, scale = (baselines.binary if options.method == "binary" else baselines.ternary)(weight, options.profile)
            if _can_be_looked_at(weight):
                require_finite(name, sum_of(scale))
            return dense.to(dtype)
        if not in_reach(weight) and not STRATEGIES[options.quantizer].is_in_torch(scales is not None and not _traced()):
            return _in_main_memory(weight, options, rows, scales, columns, name).to(dtype)
        if not in_reach(weight):
            return _in_torch(weight, options, rows, scales, columns, dtype, name)
        if scales is not None or columns is not None:  # else scales that the C library computes show what the weight holds
            require_finite(name, sum_of(weight, rows, scales, columns))
        kind = dtype if dtype in _WRITTEN else torch.float32
        result = out if out is not None and out.dtype == kind else torch.empty(weight.shape, dtype=kind)
        found = native_quantizer.dequantize_into(result, weight.detach().contiguous(), options, rows, scales, columns)
        if found is None:
            raise diverged(name)
        return result.to(dtype)


def _can_be_looked_at(weight: Tensor) -> bool:
    return type(weight) in (Tensor, torch.nn.Parameter) and weight.device.type != "meta" and not _traced()


def in_reach(weight: Tensor) -> bool:
    """Whether the C library can read the tensor: plain, in main memory, and not one that a graph is traced with."""
    plain = weight.device.type == "cpu" and type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype in _READ
    return plain and not _traced()


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.onnx.is_in_onnx_export()


def _in_torch(
    weight: Tensor,
    options: QuantizationOptions,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    dtype: torch.dtype,
    name: str,
) -> Tensor:
    if rows is None and options.row_multiplier == "rms":
        rows = torch_quantizer.row_rms(weight, options.profile)
    if not _can_be_looked_at(weight):
        return torch_quantizer.quantize(weight.detach(), options, rows, scales, columns)[0].to(dtype)
    dense, total = if_compiled(weight, _quantized_and_sum)(weight.detach(), options, rows, scales, columns, dtype)
    require_finite(name, total)
    return dense  # type: ignore[no-any-return]


def _quantized_and_sum(
    weight: Tensor,
    options: QuantizationOptions,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    dense, _ = torch_quantizer.quantize(weight, options, rows, scales, columns)
    return dense.to(dtype), sum_of(weight, rows, scales, columns)


def _in_main_memory(
    weight: Tensor,
    options: QuantizationOptions,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    name: str,
) -> Tensor:
    """What torch_quantizer.py has not, scales of other quantizers than the published one, is found in main memory."""
    if _traced() or weight.dtype == torch.float64:
        raise OptionError(
            f"{name}: the {options.quantizer} quantizer cannot be traced, nor run on float64; convert the model first"
        )
    moved = [None if x is None else x.detach().cpu() for x in (weight, rows, scales, columns)]
    assert moved[0] is not None
    return dequantize(moved[0], options, rows=moved[1], scales=moved[2], columns=moved[3], name=name).to(weight.device)


class _StraightThrough(torch.autograd.Function):
    """Gives ``dense`` in the forward pass, and its gradient to ``weight`` unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dense: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return dense.detach()  # the same memory, and the same count of changes in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].to(ctx.dtype), None


class _LearnedThrough(torch.autograd.Function):
    """As _StraightThrough, with gradients of learned multipliers and scales (gradients.py)."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        dense: Tensor,
        rows: Tensor | None,
        scales: Tensor | None,
        columns: Tensor | None,
        options: QuantizationOptions,
    ) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(weight, dense, rows, scales, columns)
        return dense.detach()  # the same memory, and the same count of changes in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, dense, rows, scales, columns = ctx.saved_tensors
        codes = None
        if scales is not None and ctx.needs_input_grad[3] and in_reach(weight):
            codes = native_quantizer.codes_of(weight, ctx.options, rows, scales, columns)
        wanted = tuple(ctx.needs_input_grad[2:5])
        of_learned = if_compiled(weight, gradients_of_learned)
        found = of_learned(weight, dense, rows, scales, columns, grads[0], codes, ctx.options, wanted)
        return grads[0].to(weight.dtype), None, *found, None


@torch.library.custom_op("fairy2i::dequantize", mutates_args=())
def _operator(
    weight: Tensor,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    method: str,
    stages: int,
    profile: str,
    quantizer: str,
    row_multiplier: str,
    name: str,
) -> Tensor:
    """:func:`dequantize` for torch.compile, which cannot look into it."""
    options = QuantizationOptions(
        method=method,  # type: ignore[arg-type]
        stages=stages,
        profile=profile,  # type: ignore[arg-type]
        quantizer=quantizer,
        row_multiplier=row_multiplier,  # type: ignore[arg-type]
    )
    return dequantize(weight, options, rows=rows, scales=scales, columns=columns, name=name)


@_operator.register_fake
def _(
    weight: Tensor,
    rows: Tensor | None,
    scales: Tensor | None,
    columns: Tensor | None,
    method: str,
    stages: int,
    profile: str,
    quantizer: str,
    row_multiplier: str,
    name: str,
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)
