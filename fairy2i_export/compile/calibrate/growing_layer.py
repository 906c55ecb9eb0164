"""A decoder layer of the quantized model while its matrices are made, one group after the other.

Every group needs what the layer computes before it, so the first part would be computed again for every group. What attention gives
is kept instead: once o_proj's turn has come, nothing before it changes any more.
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
        output: name, inside the layer, of the linear layer that attention ends with.
    """

    def __init__(self, layer: Any, states: Any, call: Call, output: str) -> None:
        self.layer, self.states, self._call, self._output = layer, states, call, output
        self._kept: dict[int, Any] = {}  # by window: what o_proj reads, [length, heads * head_dim]
        self._returned = self._returns()

    def inputs(self, modules: Sequence[str], part: slice) -> list[Any]:
        """What modules inside the layer read of some windows, float32.

        Args:
            modules: their names; the layer itself is "".
            part: the windows.
        """
        with self._attention_known(part):
            found = inputs_of(self.layer, modules, self.states[part], self._call)
        if self._returned and self._output in modules:
            self._kept.update(zip(_windows(part, self.states), found[modules.index(self._output)], strict=True))
        return [tensor.float() for tensor in found]

    def advance(self) -> None:
        """Take the hidden states through the layer, in place; all that is to be quantized is."""
        for part in batches(self.states):
            with self._attention_known(part), products():
                self.states[part] = run_layer(self.layer, self.states[part], self._call)
        self._kept.clear()

    def _returns(self) -> int:
        """Of how many values attention returns a tuple whose first is what o_proj gives, unchanged; 0 if it does not do that."""
        seen: dict[str, Any] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: seen.update({name: output})

        parent, _, _ = self._output.rpartition(".")
        hooks = [self.layer.get_submodule(name).register_forward_hook(note(name)) for name in (parent, self._output)]
        try:
            run_layer(self.layer, self.states[:1], self._call)
        finally:
            for hook in hooks:
                hook.remove()
        whole, end = seen[parent], seen[self._output]
        return len(whole) if isinstance(whole, tuple) and whole[0] is end else 0

    @contextmanager
    def _attention_known(self, part: slice) -> Iterator[None]:
        """Inside, attention is o_proj of what is kept, if all of that is there."""
        import torch

        windows = _windows(part, self.states)
        if not all(window in self._kept for window in windows):
            yield
            return
        attention = self.layer.get_submodule(self._output.rpartition(".")[0])
        read = torch.stack([self._kept[window] for window in windows])
        rest = (None,) * (self._returned - 1)
        attention.forward = lambda *args, **kwargs: (self.layer.get_submodule(self._output)(read), *rest)
        try:
            yield
        finally:
            del attention.forward


def _windows(part: slice, states: Any) -> range:
    return range(*part.indices(len(states)))
