"""The quantized model as torch computes it, with what is tuned as parameters: a factor per output row, and the norms.

Codes and scales stay. A factor of a row acts on outputs, so its gradient needs no gradient of a weight, and a step costs about
as much as three passes of its windows forward.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.codes.calibrated import CalibratedLinear
from fairy2i_export.compile.calibrate.skeleton import Skeleton
from fairy2i_export.compile.calibrate.store import LayerStore, Tuned
from fairy2i_export.compile.calibrate.streams import has_fast_bfloat16
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.source.transformers_model import remake_buffers


class Student:
    """A model that gives hidden states, whose parameters are small.

    Attributes:
        head: lm_head as it was quantized like the layers, [vocabulary, hidden]; else the float one.
        float_head: that of the source.

    Args:
        skeleton: of the source.
        decoder: its description.
        linears: all linear layers of the model by name.
        store: the calibrated ones.
    """

    def __init__(self, skeleton: Skeleton, decoder: Decoder, linears: Mapping[str, Linear], store: LayerStore) -> None:
        import torch

        self._decoder = decoder
        self._dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
        self._rows: dict[str, Any] = {}
        self._norms: dict[str, tuple[Any, Any]] = {}  # tensor name -> weight before, parameter
        model = copy.deepcopy(skeleton.model)
        for index in range(skeleton.layers):
            model.model.layers[index] = self._layer(skeleton.layer(index), f"model.layers.{index}.", store)
        model.model.norm = skeleton.module(decoder.names.final_norm)
        self._tune_norms(model.model.norm, decoder.names.final_norm)
        embedding = skeleton.module(decoder.names.embedding)
        parent, _, leaf = decoder.names.embedding.rpartition(".")
        setattr(model.get_submodule(parent), leaf, embedding)
        remake_buffers(model, model.config)
        self._body = model.model
        head = linears[decoder.names.lm_head]
        self.float_head = torch.from_numpy(skeleton.tensor(head.name, tensor=head.weight)).to(self._dtype)
        self.head, self._head_rows = self.float_head, None
        if head.name in store:
            self.head = torch.from_numpy(store.linear(head.name).quantized.dequantize("none")).to(self._dtype)
            self._head_rows = self._rows[head.name] = torch.nn.Parameter(torch.zeros(head.out_features))

    def parameters(self) -> list[Any]:
        """What is tuned: logarithms of factors, all zero at first."""
        return [*self._rows.values(), *(parameter for _, parameter in self._norms.values())]

    @property
    def head_factor(self) -> Any:
        """On the logits, torch float32 [vocabulary]; None where lm_head is not tuned."""
        return None if self._head_rows is None else self._head_rows.exp()

    def hidden(self, ids: npt.NDArray[np.int64]) -> Any:
        """Normalised hidden states [windows, length, hidden], float32, of token ids [windows, length]."""
        import torch

        with torch.autocast("cpu", self._dtype, enabled=self._dtype != torch.float32):
            found = self._body(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
        return found.float()

    def tuned(self) -> Tuned:
        """What the parameters are worth now."""
        import torch

        with torch.no_grad():
            rows = {name: torch.exp(parameter).numpy() for name, parameter in self._rows.items()}
            offset = self._decoder.norm_offset
            norms = {
                name: ((before + offset) * torch.exp(parameter) - offset).numpy()
                for name, (before, parameter) in self._norms.items()
            }
        return Tuned(rows, norms)

    def _layer(self, layer: Any, prefix: str, store: LayerStore) -> Any:
        """A decoder layer with its quantized weights, and what is tuned in it."""
        import torch

        for name, module in list(layer.named_modules()):
            if not isinstance(module, torch.nn.Linear):
                continue
            if prefix + name in store:
                found: CalibratedLinear = store.linear(prefix + name)
                module.weight.data = torch.from_numpy(found.quantized.dequantize("none"))
                self._rows[prefix + name] = _scale_rows(module)
            module.weight.data = module.weight.data.to(self._dtype)
        self._tune_norms(layer, prefix.removesuffix("."))
        return layer

    def _tune_norms(self, module: Any, name: str) -> None:
        """Make every weight of a norm (the only vectors of weights) inside a module a function of a parameter."""
        import torch
        from torch.nn.utils import parametrize

        offset = self._decoder.norm_offset
        for inside, norm in list(module.named_modules()):
            weight = getattr(norm, "weight", None)
            if weight is None or weight.dim() != 1:
                continue
            before = weight.detach().clone()
            norm.weight = torch.nn.Parameter(torch.zeros_like(before))
            parametrize.register_parametrization(norm, "weight", _relative(before, offset), unsafe=True)
            tensor = ".".join(part for part in (name, inside, "weight") if part)
            self._norms[tensor] = before, norm.parametrizations.weight.original


def _relative(before: Any, offset: float) -> Any:
    """A norm's weight from the logarithm of its change."""
    import torch

    class Relative(torch.nn.Module):
        def forward(self, change: Any) -> Any:
            return (before + offset) * torch.exp(change) - offset

    return Relative()


def _scale_rows(linear: Any) -> Any:
    """Give a linear layer one factor per output, before its bias; returns the parameter, its logarithm."""
    import torch

    factor = torch.nn.Parameter(torch.zeros(linear.out_features))
    bias, linear.bias = linear.bias, None

    def scale(module: Any, inputs: Any, output: Any) -> Any:
        scaled = output.float() * torch.exp(factor)
        return scaled if bias is None else scaled + bias

    linear.register_forward_hook(scale)
    return factor
