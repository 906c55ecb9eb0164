"""Training as GPUs run it: one kernel has the bits of one step at a time, and nobody waits for a layer's check.

Without a GPU, torch compiles for the processor, and main memory is taken for a device.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fairy2i_export.train.qat.options import QuantizationOptions

torch = pytest.importorskip("torch")

from fairy2i_export.errors import WeightError  # noqa: E402
from fairy2i_export.train.data.packing import IGNORED  # noqa: E402
from fairy2i_export.train.loop import distill  # noqa: E402
from fairy2i_export.train.qat import devices, torch_quantizer  # noqa: E402
from fairy2i_export.train.qat.devices import compiled  # noqa: E402
from fairy2i_export.train.qat.fake_quantize import dequantize  # noqa: E402
from fairy2i_export.train.qat.gradients import gradients_of_learned  # noqa: E402
from fairy2i_export.train.qat.modules import QATLinear  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(not GPU and shutil.which("g++") is None, reason="torch finds no compiler here")

SCALES = {
    1: [[[1.0, 0.9], [1.1, 0.8]]],
    2: [[[1.0, 0.9], [1.1, 0.8]], [[0.5, 0.4], [0.45, 0.5]]],
    4: [[[1.0, 0.9], [1.1, 0.8]], [[0.5, 0.4], [0.45, 0.5]], [[0.2, 0.25], [0.22, 0.2]], [[0.1, 0.12], [0.09, 0.1]]],
}


@pytest.fixture(autouse=True)
def _one_number_at_a_time() -> Iterator[None]:
    """As a thread of a GPU computes; a kernel for the processor's vectors takes g++ twice as long."""
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        yield


def layer(shape: tuple[int, int], options: QuantizationOptions) -> list[Any]:
    """A weight with ties and zeros, row multipliers, scales, column multipliers."""
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator) * 0.1
    weight[weight.abs() < 0.02] = 0
    weight[0] = 0.25
    rows = torch.rand(shape[0], generator=generator) * 0.1 + 0.05
    columns = torch.rand(shape[1], generator=generator) + 0.5
    learned: list[Any] = [
        rows if options.row_multiplier == "learned" else None,
        torch.tensor(SCALES[options.stages]) if options.learned_scales else None,
        columns if options.col_multiplier == "learned" else None,
    ]
    return [weight, *learned]


def on_device(values: list[Any]) -> list[Any]:
    return [None if value is None else value.to(DEVICE) for value in values]


@pytest.mark.parametrize("stages", [1, 2, 4] if GPU else [1, 4])
def test_joint_with_everything_learned(stages: int) -> None:
    options = QuantizationOptions(
        stages=stages,
        profile="fp32",
        quantizer="joint",
        learned_scales=True,
        row_multiplier="learned",
        col_multiplier="learned",
    )
    for shape in ((18, 46), (34, 20)):  # the second is another shape than that compiled for
        weight, rows, scales, columns = layer(shape, options)
        expected = dequantize(weight, options, rows=rows, scales=scales, columns=columns)  # by the C library
        moved = on_device([weight, rows, scales, columns])
        found, used = compiled(torch_quantizer.quantize)(moved[0], options, *moved[1:])
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(used.cpu(), scales)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        inputs = (moved[0], found, *moved[1:], grad, None, options, (True, True, True))
        for one_kernel, one_by_one in zip(
            compiled(gradients_of_learned)(*inputs), gradients_of_learned(*inputs), strict=True
        ):
            torch.testing.assert_close(one_kernel, one_by_one, rtol=1e-4, atol=1e-5)


def test_published_rounding_after_every_step() -> None:
    options = QuantizationOptions(stages=2)
    weight = layer((18, 46), options)[0]
    found, _ = compiled(torch_quantizer.quantize)(weight.to(DEVICE), options, None, None, None)
    assert torch.equal(found.float().cpu(), dequantize(weight, options))


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_loss(alpha: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, sums and gradients are those of one step at a time."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(2, 9, 50, generator=generator).to(DEVICE, torch.bfloat16) * 3 for _ in range(2))
    labels = torch.randint(50, (2, 9), generator=generator).to(DEVICE)
    labels[0, 4:] = IGNORED
    found = []
    for one_kernel in (False, True):
        monkeypatch.setattr(devices, "is_compiled", lambda tensor, one_kernel=one_kernel: one_kernel)
        given = logits.clone().requires_grad_()
        losses = distill.losses(given, labels, teacher if alpha else None, alpha, temperature)
        losses.loss.backward()
        found.append((losses.loss, losses.entropy, losses.divergence, given.grad))
    assert all(torch.isfinite(value).all() for value in found[0])
    for one_by_one, at_once in zip(*found, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-2 if one_by_one.dim() else 1e-5, atol=1e-5)


def layer_with(value: float, name: str) -> QATLinear:
    """A layer that is quantized in torch (float64) and holds ``value``."""
    layer = QATLinear(8, 6, options=QuantizationOptions(learned_scales=True), dtype=torch.float64, name=name)
    with torch.no_grad():
        layer.weight[2, 3] = value
    return layer


def test_answers_of_devices_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "goes_on_alone", lambda tensor: True)
    good, bad, x = layer_with(0.5, "good"), layer_with(float("nan"), "model.bad"), torch.ones(1, 8, dtype=torch.float64)
    for layer in (good, bad, good):
        layer(x)  # says nothing yet
    with pytest.raises(WeightError, match=r"^model\.bad: .*training diverged"):
        devices.settle()
    devices.settle()  # has been told
    with pytest.raises(WeightError, match=r"^model\.bad: "):
        bad.dequantized_weight()
    bad(x)
    for _ in range(devices._MANY - 2):
        good(x)
    with pytest.raises(WeightError, match=r"^model\.bad: "):
        good(x)
    good(x)
    devices.settle()
