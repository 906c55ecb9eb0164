"""The source's transformers modules, one decoder layer in memory at a time.

The model is made on torch's meta device, without values; layers are copied from there and filled from the checkpoint. What a
decoder layer is called with besides hidden states (masks, rotary tables) is recorded by running the model with recorders in
place of its layers, so that no architecture needs a description of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.rotation.weights import RotatedWeights, changed
from fairy2i_export.source.transformers_model import meta_model, remake_buffers

_LAYERS = "model.layers"


@dataclass(frozen=True)
class Call:
    """What a decoder layer is called with besides hidden states, the same for every window."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Skeleton:
    """The model without weights, which hands out single modules with them.

    Args:
        checkpoint: the source.
        decoder: its description.
        rope_scaling: as asked for, or None.
        rotated: what becomes of the source's tensors before they are used, or None.

    Raises:
        CheckpointError: if transformers cannot build the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, decoder: Decoder, rope_scaling: str | None, rotated: RotatedWeights | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self._rotated = rotated
        attention = "eager" if decoder.attention_softcap is not None else "sdpa"
        self.model, self._config = meta_model(checkpoint, rope_scaling, attention)
        self._embedding = decoder.names.embedding

    @property
    def layers(self) -> int:
        return len(self.model.get_submodule(_LAYERS))

    def layer(self, index: int) -> Any:
        """A decoder layer with its weights in float32."""
        return self._filled(f"{_LAYERS}.{index}")

    def module(self, name: str) -> Any:
        """Any other module with its weights in float32."""
        return self._filled(name)

    def tensor(self, module: str, key: str = "weight", tensor: str = "") -> npt.NDArray[np.float32]:
        """A tensor of a module in float32, as its layers use it.

        Args:
            module: its name.
            key: weight or bias.
            tensor: its name in the checkpoint, if that is not ``module.key``: a tied lm_head's is the embedding's.
        """
        name = tensor or f"{module}.{key}"
        change = None if self._rotated is None else self._rotated.change(module, key)
        return changed(self.checkpoint.read(name), change)

    def begin(self, ids: npt.NDArray[np.int64]) -> tuple[Any, list[Call]]:
        """Hidden states before the first layer, torch float32 [windows, length, hidden], and what each layer is called with."""
        import torch

        model = copy.deepcopy(self.model)
        embedding = model.get_submodule(self._embedding)
        embedding.load_state_dict(self._state(embedding, self._embedding), strict=True, assign=True)
        hidden: list[Any] = []
        calls: list[Call | None] = [None] * self.layers
        layers = model.get_submodule(_LAYERS)
        for index in range(len(layers)):
            layers[index] = _recorder(layers[index], index, hidden, calls)
        model.model.norm = torch.nn.Identity()
        remake_buffers(model, self._config)
        states: Any = None  # of all windows in one tensor: one by one they would hold on to memory when they are gone
        with torch.no_grad():
            for index, window in enumerate(ids):
                model.model(input_ids=torch.from_numpy(window[None]), use_cache=False)
                if len(hidden) != 1:
                    break
                if states is None:
                    states = hidden[0].new_empty((len(ids), *hidden[0].shape[1:]))
                states[index] = hidden.pop()
        recorded = [call for call in calls if call is not None]
        if states is None or hidden or len(recorded) != len(calls):
            raise CheckpointError("this version of transformers does not call the decoder layers of this model one by one")
        return states, recorded

    def _filled(self, name: str) -> Any:
        module = copy.deepcopy(self.model.get_submodule(name))
        module.load_state_dict(self._state(module, name), strict=True, assign=True)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module.eval()

    def _state(self, module: Any, name: str) -> dict[str, Any]:
        import torch

        inside = {key: f"{name}.{key}".rpartition(".") for key in module.state_dict()}
        return {key: torch.from_numpy(self.tensor(owner, kind)) for key, (owner, _, kind) in inside.items()}


def _recorder(layer: Any, index: int, hidden: list[Any], calls: list[Call | None]) -> Any:
    """A module that stands for a decoder layer, notes what it is called with and gives hidden states back unchanged."""
    import torch

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # what models ask their layers for
            self.attention_type = getattr(layer, "attention_type", None)

        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            if index == 0:
                hidden.append(hidden_states)
            if calls[index] is None:
                calls[index] = Call(args, kwargs)
            return hidden_states

    return Recorder()


def run_layer(layer: Any, hidden: Any, call: Call) -> Any:
    """Hidden states after a decoder layer."""
    found = layer(hidden, *call.args, **call.kwargs)
    return found[0] if isinstance(found, tuple) else found
