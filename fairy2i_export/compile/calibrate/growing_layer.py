"""A decoder layer of the quantized model while its matrices are made, one group after the other.

Every group needs what the layer computes before it, so the first part would be computed again for every group. What attention and
the MLP end with is kept instead: once the turn of o_proj or down_proj has come, nothing before it changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fairy2i_export.compile.calibrate.skeleton import Call, run_layer
from fairy2i_export.compile.calibrate.streams import batches, inputs_of, products


class GrowingLayer:
    """The layer and its hidden states.

    Attributes:
        layer: the module.
        states: its hidden states.

    Args:
        layer: the module; its quantized matrices are put in as they are made.
        states: torch float32 [windows, length, hidden], before the layer.
        call: of the layer.
        ends: names, inside the layer, of the linear layers that attention and the MLP end with.
    """

    def __init__(self, layer: Any, states: Any, call: Call, ends: Sequence[str]) -> None:
        self.layer, self.states, self._call = layer, states, call
        returned = self._returns(ends)
        # by end whose module returns nothing else: of how many values it returns a tuple (0: no tuple), and, by window, what the
        # end reads, [length, features]
        self._ends: dict[str, tuple[int, dict[int, Any]]] = {
            end: (count, {}) for end, count in returned.items() if count is not None
        }

    def inputs(self, modules: Sequence[str], part: slice) -> list[Any]:
        """What modules inside the layer read of some windows, float32.

        Args:
            modules: their names; the layer itself is "".
            part: the windows.
        """
        with self._known(part):
            found = inputs_of(self.layer, modules, self.states[part], self._call)
        for end, (_, kept) in self._ends.items():
            if end in modules:
                kept.update(zip(_windows(part, self.states), found[modules.index(end)], strict=True))
        return [tensor.float() for tensor in found]

    def advance(self) -> None:
        """Take the hidden states through the layer, in place; all that is to be quantized is."""
        for part in batches(self.states):
            with self._known(part), products():
                self.states[part] = run_layer(self.layer, self.states[part], self._call)
        for _, kept in self._ends.values():
            kept.clear()

    def _returns(self, ends: Sequence[str]) -> dict[str, int | None]:
        """Of how many values an end's module returns a tuple that begins with what the end gives; 0: just that, None: not that."""
        seen: dict[str, Any] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: seen.update({name: output})

        parents = {end: end.rpartition(".")[0] for end in ends}
        hooks = [
            self.layer.get_submodule(name).register_forward_hook(note(name))
            for name in (*parents, *parents.values())
            if name
        ]
        try:
            run_layer(self.layer, self.states[:1], self._call)
        finally:
            for hook in hooks:
                hook.remove()
        counts: dict[str, int | None] = {}
        for end, parent in parents.items():
            whole = seen.get(parent)
            first = whole[0] if isinstance(whole, tuple) else whole
            counts[end] = (
                None if first is None or first is not seen.get(end) else len(whole) if isinstance(whole, tuple) else 0
            )
        return counts

    @contextmanager
    def _known(self, part: slice) -> Iterator[None]:
        """Inside, attention and the MLP are their ends, each of what is kept, if all of that is there."""
        windows, changed = _windows(part, self.states), []
        for end, (count, kept) in self._ends.items():
            if all(window in kept for window in windows):
                parent = self.layer.get_submodule(end.rpartition(".")[0])
                parent.forward = self._ending(end, count, [kept[window] for window in windows])
                changed.append(parent)
        try:
            yield
        finally:
            for parent in changed:
                del parent.forward

    def _ending(self, end: str, count: int, read: Sequence[Any]) -> Callable[..., Any]:
        """What a module computes, from what its end reads of each window."""
        import torch

        def forward(*args: Any, **kwargs: Any) -> Any:
            found = self.layer.get_submodule(end)(torch.stack(list(read)))
            return (found, *(None,) * (count - 1)) if count else found

        return forward


def _windows(part: slice, states: Any) -> range:
    return range(*part.indices(len(states)))
