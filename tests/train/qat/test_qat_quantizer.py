"""The quantizer in training: equal to the exporter's to the bit, and the gradients that are passed through it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fairy2i_export import quantize
from fairy2i_export.codes.native import Points
from fairy2i_export.codes.quantized import QuantizedLinear
from fairy2i_export.codes.strategies.greedy import exact_means
from fairy2i_export.errors import OptionError, WeightError

torch = pytest.importorskip("torch")

from fairy2i_export.train import (  # noqa: E402
    QATLinear,
    QuantizationOptions,
    fake_quantize,
)
from fairy2i_export.train.qat import native_quantizer, torch_quantizer  # noqa: E402
from fairy2i_export.train.qat.activations import round_activations  # noqa: E402
from fairy2i_export.train.qat.torch_points import nearest_codes  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_numpy(weight: Any) -> np.ndarray:
    if weight.dtype == torch.bfloat16:
        return weight.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return weight.detach().numpy()


def difficult(rows: int, cols: int, dtype: Any, seed: int) -> Any:
    """Random weights with zeros of both signs, a row of zeros, ties and an outlier."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * 0.02
    pick = torch.rand(rows, cols, generator=generator)
    weight[pick < 0.1] = 0.0
    weight[(pick >= 0.1) & (pick < 0.2)] = -0.0
    weight[(pick >= 0.2) & (pick < 0.3)] = 0.015625
    weight[rows // 2] = 0
    weight[0, 0] = 1.5
    return weight.to(dtype)


def in_torch(weight: Any, options: QuantizationOptions, **learned: Any) -> Any:
    """What other devices compute: the C library switched off."""
    rows = learned.get("rows")
    if rows is None and options.row_multiplier == "rms":
        rows = torch_quantizer.row_rms(weight, options.profile)
    return torch_quantizer.quantize(weight, options, rows, learned.get("scales"))[0].to(weight.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
def test_forward_is_the_exporters_quantizer_to_the_bit(dtype: str, profile: Any, row_multiplier: Any) -> None:
    for seed, (stages, shape) in enumerate(product((1, 2, 3, 4), ((2, 2), (66, 34), (6, 1100), (300, 256)))):
        options = QuantizationOptions(stages=stages, profile=profile, row_multiplier=row_multiplier)
        weight = difficult(*shape, DTYPES[dtype], seed)
        q = quantize(as_numpy(weight), stages, profile, row_multiplier=row_multiplier)
        expected = torch.from_numpy(q.dequantize()).to(weight.dtype)
        for found in (fake_quantize(weight, options), in_torch(weight, options)):
            assert found.dtype == weight.dtype
            bits = torch.int16 if weight.element_size() == 2 else torch.int32
            assert torch.equal(found.view(bits), expected.view(bits)), (stages, shape)


@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
@pytest.mark.parametrize("row_multiplier", ["none", "rms"])
def test_the_joint_quantizer(profile: Any, row_multiplier: Any) -> None:
    for stages in (1, 2, 3, 4):
        weight = difficult(66, 80, torch.float32, stages)
        options = QuantizationOptions(stages=stages, profile=profile, quantizer="joint", row_multiplier=row_multiplier)
        q = quantize(weight.numpy(), stages, profile, quantizer="joint", row_multiplier=row_multiplier)
        assert torch.equal(fake_quantize(weight, options), torch.from_numpy(q.dequantize()))
        assert stages == 1 or not torch.equal(
            fake_quantize(weight, options), fake_quantize(weight, replace(options, quantizer="greedy"))
        )
    scales = torch.from_numpy(q.scales) * 1.1
    rows = None if q.row_multiplier is None else torch.from_numpy(q.row_multiplier)
    given = quantize(weight.numpy(), 4, profile, quantizer="joint", row_multiplier=row_multiplier, scales=scales.numpy())
    assert torch.equal(fake_quantize(weight, options, rows=rows, scales=scales), torch.from_numpy(given.dequantize()))
    assert np.array_equal(native_quantizer.codes_of(weight, options, rows, scales).numpy(), given.codes)
    assert torch.equal(in_torch(weight, options, rows=rows, scales=scales), torch.from_numpy(given.dequantize()))
    assert np.array_equal(torch_quantizer.codes_of(weight, options, rows, scales).numpy(), given.codes)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_joint_search_in_torch_decides_ties_as_the_library(stages: int) -> None:
    """Entries on borders, on points and beyond all of them; scales of which points coincide, and one below zero."""
    grid = torch.arange(-20, 21, dtype=torch.float32) / 8
    re, im = (part.contiguous() for part in torch.meshgrid(grid, grid, indexing="ij"))
    for scales in (
        torch.full((stages, 2), 0.5),
        torch.tensor([[1.0, 0.75], [0.5, 0.5], [0.25, 0.25], [0.0, 0.125]])[:stages],
        torch.tensor([[1.0, -0.75], [0.5, 0.25], [0.5, 0.25], [0.125, 0.125]])[:stages],
    ):
        expected = Points(scales.numpy()).codes(re.numpy(), im.numpy())
        np.testing.assert_array_equal(nearest_codes(re, im, scales).numpy(), expected)


def test_means_that_need_exact_addition() -> None:
    """Row sums whose mean lies so close to the middle between two float32 numbers that plain additions cannot tell."""
    sums = np.array([[2.0**52], [1.0], [2.0**-40], [2.0**-60]]).repeat(2, axis=1)
    sums[3, 1] = 0
    for count in (np.array([1, 1]), np.array([3, 7])):
        exact = [np.float32(math.fsum(sums[:, i]) / count[i]) for i in range(2)]
        np.testing.assert_array_equal(exact_means(sums, count), np.array(exact, np.float32))
    tie = np.array([[1.0], [2.0**-24], [2.0**-53], [2.0**-53]])  # 1 + 2^-24 is a tie, a little more is not
    assert exact_means(tie, np.array([1]))[0] == np.float32(1 + 2.0**-23)
    assert exact_means(np.zeros((3, 2)), np.array([0, 5])).tolist() == [0, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    weight = difficult(512, 300, torch.float32, 0)
    expected = torch.from_numpy(quantize(weight.numpy(), 2).dequantize())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(fake_quantize(weight, QuantizationOptions()), expected)
        assert torch.equal(fake_quantize(weight.T.contiguous().T, QuantizationOptions()), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["fairy2i", "binary", "ternary"])
def test_the_gradient_passes_unchanged(dtype: Any, method: Any) -> None:
    """dL/dweight is dL/dW_q, bit for bit: a dense layer that holds W_q gets the same gradients."""
    torch.manual_seed(0)
    layer = QATLinear(48, 32, options=QuantizationOptions(method=method), dtype=dtype)
    dense = layer.to_linear()
    x = torch.randn(5, 48, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(i) for module, i in zip((layer, dense), inputs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(layer.weight.grad, dense.weight.grad)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(layer.bias.grad, dense.bias.grad)


def test_the_baselines() -> None:
    """The published formulas: binary around the mean with the mean magnitude, ternary over the mean magnitude."""
    weight = torch.randn(64, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    w = weight.to(torch.bfloat16)
    binary = fake_quantize(w, QuantizationOptions(method="binary"))
    scale, mean = w.abs().mean(), w.mean()
    assert torch.equal(binary, torch.where(w - mean > 0, 1.0, -1.0).to(torch.bfloat16) * scale)
    assert not torch.equal(binary > 0, w > 0)  # the mean counts
    ternary = fake_quantize(weight, QuantizationOptions(method="ternary", profile="fp32"))
    gamma = weight.abs().mean()
    assert torch.equal(ternary, (weight / (gamma + 1e-5)).round().clamp(-1, 1) * gamma)
    assert len(ternary.unique()) == 3


def small_problem(learned: dict[str, Any], stages: int = 2) -> tuple[Any, Any, QuantizationOptions]:
    torch.manual_seed(1)
    options = QuantizationOptions(stages=stages, profile="fp32", **learned)
    return torch.randn(8, 12) * 0.3, torch.randn(8, 12), options


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_gradient_of_learned_scales(stages: int, rows: bool) -> None:
    """Against finite differences of sum_t s_t code_t with the codes held fixed; the gradient is divided by sqrt(n m)."""
    row_multiplier = "learned" if rows else "none"
    weight, direction, options = small_problem({"learned_scales": True, "row_multiplier": row_multiplier}, stages)
    r, scales = native_quantizer.find_parameters(weight, options)
    scales = (scales * 1.1).requires_grad_()
    given = {"rows": r if rows else None, "scales": scales}
    (fake_quantize(weight, options, **given) * direction).sum().backward()
    codes = native_quantizer.codes_of(weight, options, given["rows"], scales.detach()).numpy()

    def loss(s: np.ndarray) -> float:
        q = QuantizedLinear(codes, s.astype(np.float32), "fp32", r.numpy() if rows else None)
        return float((q.dequantize("none").astype(np.float64) * direction.numpy()).sum())

    s = scales.detach().numpy()
    for place in np.ndindex(s.shape):
        step = np.zeros_like(s)
        step[place] = 0.25  # the function is linear: steps may be large
        numeric = (loss(s + step) - loss(s - step)) / 0.5
        assert float(scales.grad[place]) * (4 * 6) ** 0.5 == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_gradient_of_learned_row_multipliers() -> None:
    """Against finite differences of A + diag(r) E with the relative rounding error E held fixed."""
    weight, direction, options = small_problem({"row_multiplier": "learned"})
    r, _ = native_quantizer.find_parameters(weight, options)
    rows = r.clone().requires_grad_()
    dense = fake_quantize(weight.requires_grad_(), options, rows=rows)
    (dense * direction).sum().backward()
    error = (dense.detach() - weight.detach()) / r[:, None]
    for row in range(8):
        step = torch.zeros(8)
        step[row] = 0.25
        values = [(weight.detach() + (r + sign * step)[:, None] * error).mul(direction).sum() for sign in (1, -1)]
        assert float(rows.grad[row]) == pytest.approx(float(values[0] - values[1]) / 0.5, rel=1e-3, abs=1e-4)
    assert torch.equal(weight.grad, direction)


@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
def test_learned_parameters_start_where_the_quantizer_is(profile: Any) -> None:
    weight = difficult(64, 96, torch.float32, 3)
    layer = torch.nn.Linear(96, 64, bias=False)
    layer.weight.data = weight
    options = QuantizationOptions(profile=profile, learned_scales=True, row_multiplier="learned")
    learned = QATLinear.from_linear(layer, options)
    q = quantize(weight.numpy(), 2, profile, row_multiplier="rms")
    assert {name: tuple(p.shape) for name, p in learned.named_parameters()} == {
        "weight": (64, 96), "row_multiplier": (64,), "scales": (2, 2, 2),
    }  # fmt: skip
    np.testing.assert_array_equal(learned.scales.detach().numpy(), q.scales)
    np.testing.assert_array_equal(learned.row_multiplier.detach().numpy(), q.row_multiplier)
    assert torch.equal(learned.quantized_weight(), torch.from_numpy(q.dequantize()))
    x = torch.randn(3, 96)
    learned(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())
    with torch.no_grad():  # codes follow the scales as they are
        learned.scales.mul_(0.7)
        learned.row_multiplier.mul_(1.3)
    given = {"rows": learned.row_multiplier, "scales": learned.scales}
    assert torch.equal(learned.quantized_weight(), in_torch(weight, options, **given))
    codes = [f(weight, options, *given.values()) for f in (native_quantizer.codes_of, torch_quantizer.codes_of)]
    assert torch.equal(*codes)


def test_activations_of_8_bits() -> None:
    x = torch.randn(4, 7, 33) * torch.logspace(-3, 3, 7)[:, None]
    x[0, 0] = 0
    x.requires_grad_()
    y = round_activations(x)
    unit = x.detach().abs().amax(-1, keepdim=True) / 127
    assert ((y - x).abs() <= unit * 0.5001).all()
    steps = y.detach() / torch.where(unit == 0, 1, unit)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert torch.equal(x.grad, gradient)
    layer = QATLinear(33, 8, options=QuantizationOptions(method="binary", activation_bits=8))
    assert torch.equal(layer(x), torch.nn.functional.linear(y, layer.quantized_weight(), layer.bias))


LEARNED: dict[str, Any] = {"learned_scales": True, "row_multiplier": "learned"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["library", "torch"])  # float64 is beyond the library
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"stages": 4, "profile": "fp32"}, {"row_multiplier": "rms"}, {"learned_scales": True}, LEARNED,
        {"quantizer": "joint", "stages": 4}, {"quantizer": "joint", "stages": 4, **LEARNED},
        {"method": "binary"}, {"method": "ternary", "profile": "fp32"},
    ],
    ids=str,
)  # fmt: skip
def test_weights_that_are_not_finite(settings: dict[str, Any], dtype: Any, value: float) -> None:
    if dtype == torch.float64 and "quantizer" in settings:
        pytest.skip("an OptionError")
    options = QuantizationOptions(**settings)
    layer = QATLinear(8, 6, options=options, dtype=dtype, name="model.layers.3.mlp.up_proj")
    x = torch.ones(1, 8, dtype=dtype)
    kept = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    for name, parameter in layer.named_parameters():
        if name == "bias":
            continue
        with torch.no_grad():
            parameter.view(-1)[3] = value
        for _ in range(2):  # nothing half-made is kept
            with pytest.raises(WeightError, match=r"model\.layers\.3\.mlp\.up_proj: .*training diverged"):
                layer(x)
        with torch.no_grad():
            parameter.copy_(kept[name])
    assert layer(x).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 5}, "stages"), ({"stages": True}, "stages"), ({"profile": "fp8"}, "profile"), ({"method": "w2"}, "method"),
        ({"quantizer": "best"}, "quantizer"), ({"row_multiplier": "max"}, "row multiplier"),
        ({"activation_bits": 4}, "activation bits"), ({"method": "binary", "learned_scales": True}, "binary"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        QuantizationOptions(**options)


@pytest.mark.parametrize("quantizer", ["greedy", "joint"])
@pytest.mark.parametrize("profile", ["bf16-reference", "fp32"])
def test_learned_column_multipliers(profile: Any, quantizer: str) -> None:
    """The exporter's matrix to the bit, and the gradients of W = A + diag(r) E diag(c) with E constant, by autograd."""
    torch.manual_seed(0)
    options = QuantizationOptions(
        profile=profile, quantizer=quantizer, row_multiplier="learned", col_multiplier="learned", learned_scales=True
    )
    layer = QATLinear(34, 22, bias=False, options=options)
    assert torch.equal(layer.col_multiplier, torch.ones(34))
    with torch.no_grad():
        layer.col_multiplier.uniform_(0.5, 2)
    a, r, c, s = (x.detach().clone() for x in (layer.weight, layer.row_multiplier, layer.col_multiplier, layer.scales))
    given = {"row_multiplier": r.numpy(), "col_multiplier": c.numpy(), "scales": s.numpy()}
    exported = quantize(a.numpy(), 2, profile, quantizer=quantizer, **given)
    dense = layer.quantized_weight()
    np.testing.assert_array_equal(dense.detach().numpy(), exported.dequantize())
    np.testing.assert_array_equal(torch_quantizer.quantize(a, options, r, s, c)[0].numpy(), exported.dequantize())
    grad = torch.randn(22, 34)
    dense.backward(grad)
    rest = ((dense.detach() - a) / r[:, None] / c).requires_grad_(False)
    weight, rows, columns = (x.clone().requires_grad_() for x in (a, r, c))
    (weight + rows[:, None] * rest * columns).backward(grad)
    for found, expected in ((layer.weight, weight), (layer.row_multiplier, rows), (layer.col_multiplier, columns)):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)
    # scales: the codes are constant, so the matrix is linear in them
    step = 1e-2
    for place in ((0, 0, 0), (1, 1, 1)):
        moved = s.clone()
        moved[place] += step
        other = replace(exported, scales=moved.numpy()).dequantize("none") - exported.dequantize("none")
        expected = float((torch.from_numpy(other) * grad).sum()) / step / math.sqrt(11 * 17)
        assert float(layer.scales.grad[place]) == pytest.approx(expected, rel=1e-3)
