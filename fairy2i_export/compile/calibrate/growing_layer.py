"""A decoder layer of the quantized model while its matrices are made, one group after the other.

Every group needs what the layer computes before it, so the first part would be computed again for every group. What attention and
the MLP end with is kept instead: once the turn of o_proj or down_proj has come, nothing before it changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fairy2i_export.compile.calibrate.skeleton import Call, run_layer
from fairy2i_export.compile.calibrate.streams import batches, inputs_of, keep, products


class GrowingLayer:
    """The layer and its hidden states.

    Attributes:
        layer: the module.
        states: its hidden states.
        call: what it is called with beside them.

    Args:
        layer: the module; its quantized matrices are put in as they are made.
        states: torch float32 [windows, length, hidden], before the layer.
        call: of the layer.
        ends: names, inside the layer, of the linear layers that attention and the MLP end with.
    """

    def __init__(self, layer: Any, states: Any, call: Call, ends: Sequence[str]) -> None:
        self.layer, self.states, self.call = layer, states, call
        self._returned = self._returns(ends)
        self._kept: dict[str, Any] = {}  # by end: what it reads, [windows, length, features]
        self._known: dict[str, set[int]] = {end: set() for end in self._returned}  # of these windows

    def inputs(self, modules: Sequence[str], part: slice) -> list[Any]:
        """What modules inside the layer read of some windows, float32.

        Args:
            modules: their names; the layer itself is "".
            part: the windows.
        """
        with self._without_what_is_known(part):
            found = inputs_of(self.layer, modules, self.states[part], self.call)
        for end, known in self._known.items():
            if end in modules:
                keep(self._kept, end, part, found[modules.index(end)], len(self.states))
                known.update(self._windows(part))
        return [tensor.float() for tensor in found]

    def advance(self) -> None:
        """Take the hidden states through the layer, in place; all that is to be quantized is."""
        for part in batches(self.states):
            with self._without_what_is_known(part), products():
                self.states[part] = run_layer(self.layer, self.states[part], self.call)
        self._kept.clear()
        for known in self._known.values():
            known.clear()

    def _returns(self, ends: Sequence[str]) -> dict[str, int]:
        """Of those ends whose module returns what they give, unchanged: 0, or of how many values a tuple that begins with it."""
        seen: dict[str, Any] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: seen.update({name: output})

        parents = {end: end.rpartition(".")[0] for end in ends}
        names = (*parents, *parents.values())
        hooks = [self.layer.get_submodule(name).register_forward_hook(note(name)) for name in names]
        try:
            run_layer(self.layer, self.states[:1], self.call)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for end, parent in parents.items():
            whole = seen[parent]
            is_tuple = isinstance(whole, tuple)
            if (whole[0] if is_tuple else whole) is seen[end]:
                found[end] = len(whole) if is_tuple else 0
        return found

    @contextmanager
    def _without_what_is_known(self, part: slice) -> Iterator[None]:
        """Inside, attention and the MLP are their ends, each of what is kept, if all of that is there."""
        changed = []
        for end, known in self._known.items():
            if known.issuperset(self._windows(part)):
                parent = self.layer.get_submodule(end.rpartition(".")[0])
                parent.forward = self._ending(end, self._kept[end][part])
                changed.append(parent)
        try:
            yield
        finally:
            for parent in changed:
                del parent.forward

    def _ending(self, end: str, read: Any) -> Callable[..., Any]:
        """What the module of an end computes, from what the end reads, [windows, length, features]."""
        rest = (None,) * (self._returned[end] - 1)

        def forward(*args: Any, **kwargs: Any) -> Any:
            found = self.layer.get_submodule(end)(read)
            return (found, *rest) if self._returned[end] else found

        return forward

    def _windows(self, part: slice) -> range:
        return range(*part.indices(len(self.states)))
