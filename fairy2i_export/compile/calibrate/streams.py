"""The two models that go through the decoder side by side, layer by layer: the quantized one and the float one.

Both see the same text. What the modules of the float layer read is kept while the layers of the quantized one are made, in
bfloat16, which halves it: it is only compared with, and rounding is small beside what quantization changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

from fairy2i_export.compile.calibrate.skeleton import Call, run_layer

BATCH = 4  # windows that go through a layer together
LAYER = ""  # as the name of a module: the decoder layer itself
_TRIES = 6  # products of each type
_CLEARLY = 0.75  # of the time of float32


class _Reached(Exception):
    """The inputs are known; the rest of the layer need not be computed."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def has_fast_bfloat16() -> bool:
    """Whether products of bfloat16 matrices take clearly less time here than those of float32, tried once in a process.

    That a processor has instructions for them does not tell: with AVX-512 alone some need half the time, others nearly twice as
    much. One that is hardly faster is not worth what rounding loses, nor that results would hang on a measurement.
    """
    import torch

    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    if not (known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16")):
        return False  # each of them would take seconds
    left, right = torch.ones(256, 1024), torch.ones(1024, 1024)
    pairs = [(left.to(dtype), right.to(dtype)) for dtype in (torch.bfloat16, torch.float32)]
    with torch_threads(1):  # several wait for each other where something else computes, and not as long with each type
        rounds = [[_seconds(*pair) for pair in pairs] for _ in range(_TRIES)]  # in turns; the first of each prepares it
    bfloat16, float32 = (min(times) for times in zip(*rounds, strict=True))
    return bool(bfloat16 < _CLEARLY * float32)


def _seconds(left: Any, right: Any) -> float:
    """That a matrix product takes."""
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start


def products() -> AbstractContextManager[Any]:
    """Inside, matrix products are computed in bfloat16 where that is fast; everything else stays float32."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if has_fast_bfloat16() else nullcontext()


def batches(states: Any) -> Iterator[slice]:
    """Parts of hidden states [windows, length, hidden] that go through a layer together."""
    return (slice(start, start + BATCH) for start in range(0, len(states), BATCH))


def halves(states: Any) -> Iterator[tuple[int, slice]]:
    """The batches, each with the half of the text that it belongs to: every other one, or parts of a single one."""
    if len(states) > BATCH:
        yield from ((index % 2, part) for index, part in enumerate(batches(states)))
    else:
        middle = max(1, len(states) // 2)
        yield from ((0, slice(0, middle)), (1, slice(middle, len(states))))


def outer_products(left: Any, right: Any) -> Any:
    """The sum over tokens of outer products of [..., a] and [..., b]."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


@contextmanager
def listening(layer: Any, modules: Iterable[str], note: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside, ``note`` hears the name of every module that is called, and its input."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs: note(name, inputs[0])

    hooks = [layer.get_submodule(name).register_forward_pre_hook(hook(name)) for name in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def inputs_of(layer: Any, modules: Sequence[str], hidden: Any, call: Call) -> list[Any]:
    """What modules inside a layer are called with; what comes after the last of them is not computed."""
    with products():
        return reach(layer, modules, hidden, call)


def reach(layer: Any, modules: Sequence[str], hidden: Any, call: Call) -> list[Any]:
    """:func:`inputs_of`, in whatever types the caller has products computed."""
    seen: dict[str, Any] = {LAYER: hidden}
    wanted = [name for name in modules if name != LAYER]

    def note(name: str, inputs: Any) -> None:
        seen[name] = inputs
        if all(other in seen for other in wanted):
            raise _Reached

    with suppress(_Reached), listening(layer, wanted, note):
        run_layer(layer, hidden, call)
    return [seen[name] for name in modules]


def advance(layer: Any, states: Any, call: Call) -> None:
    """Take hidden states [windows, length, hidden] through a layer, in place."""
    for part in batches(states):
        with products():
            states[part] = run_layer(layer, states[part], call)


class FloatLayer:
    """A float layer that the hidden states of the float model have passed, and what its modules read on the way.

    Args:
        layer: the module.
        modules: names inside the layer.
        states: torch float32 [windows, length, hidden]; become those after the layer.
        call: of the layer.
    """

    def __init__(self, layer: Any, modules: Sequence[str], states: Any, call: Call) -> None:
        import torch

        self._read: dict[str, Any] = {}
        batch: dict[str, Any] = {}
        with listening(layer, (name for name in modules if name != LAYER), batch.__setitem__), products():
            for _, part in halves(states):
                batch[LAYER] = states[part]
                after = run_layer(layer, states[part], call)
                for name in modules:
                    keep(self._read, name, part, batch[name].to(torch.bfloat16), len(states))
                states[part] = after

    def inputs(self, module: str, part: slice) -> Any:
        """What a module read of some windows, float32."""
        return self._read[module][part].float()

    def forget(self, modules: Iterable[str]) -> None:
        """What these read is not asked for again."""
        for module in modules:
            del self._read[module]


def keep(kept: dict[str, Any], name: str, part: slice, values: Any, windows: int) -> None:
    """Keep what a module reads of some windows, in one tensor for all of them.

    One by one they would lie between what a layer needs for the moment, and hold on to memory that has long been free.

    Args:
        kept: [windows, length, features] by module.
        name: of the module.
        part: the windows.
        values: [windows of the part, length, features].
        windows: of the whole text.
    """
    if name not in kept:
        kept[name] = values.new_empty((windows, *values.shape[1:]))
    kept[name][part] = values
