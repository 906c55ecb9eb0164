"""A decoder layer that is quantized group by group: what attention and the MLP end with is kept, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # after the check

from architecture_helpers import CASES, save_tiny
from fairy2i_export.compile.calibrate.growing_layer import GrowingLayer
from fairy2i_export.compile.calibrate.skeleton import Skeleton
from fairy2i_export.compile.calibrate.streams import BATCH, advance, batches, inputs_of, listening
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.source.checkpoint import open_checkpoint

INDEX = 1


def prepared(folder: Path) -> tuple[Any, Any, Any, dict[str, str]]:
    """A layer, hidden states of windows before it, what it is called with, and names inside of it."""
    checkpoint = open_checkpoint(folder)
    decoder = describe(checkpoint.config)
    skeleton = Skeleton(checkpoint, decoder, None)
    ids = np.random.default_rng(0).integers(0, 80, (2 * BATCH + 1, 24))
    hidden, calls = skeleton.begin(ids)
    layer = skeleton.layer(INDEX)
    inside = {kind: getattr(decoder.names.inside, kind) for kind in ("o", "down")}
    modules = [name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    for kind, end in (("first", inside["o"]), ("gate", inside["down"])):  # of attention, of the MLP
        module = end.rpartition(".")[0]
        inside[kind] = next(name for name in modules if name.startswith(module) and name != end)
    return layer, hidden, calls[INDEX], inside


@pytest.mark.parametrize(("kind", "settings"), CASES)
@torch.no_grad()
def test_what_is_kept_changes_nothing(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    layer, states, call, names = prepared(save_tiny(tmp_path, kind, **settings))
    growing = GrowingLayer(layer, states.clone(), call, [names["o"], names["down"]])
    calls: list[str] = []
    modules = ["", names["o"]]
    with listening(layer, [names["first"], names["gate"]], lambda name, _: calls.append(name)):
        for part in batches(states):
            expected = inputs_of(layer, modules, states[part], call)
            for found, wanted in zip(growing.inputs(modules, part), expected, strict=True):
                assert torch.equal(found, wanted.float())
        assert calls == [names["first"]] * 2 * 3
        layer.get_submodule(names["o"]).weight.data *= 0.5  # it is quantized
        expected = [inputs_of(layer, [names["down"]], states[part], call)[0] for part in batches(states)]
        calls.clear()
        for part, wanted in zip(batches(states), expected, strict=True):
            (found,) = growing.inputs([names["down"]], part)
            assert torch.equal(found, wanted.float())
        assert calls == [names["gate"]] * 3
        layer.get_submodule(names["down"]).weight.data *= 0.5
        after = states.clone()
        advance(layer, after, call)
        calls.clear()
        growing.advance()
        assert not calls
    assert torch.equal(growing.states, after)
    # and the layer is as it was
    advance(layer, states, call)
    assert torch.equal(states, after)


@pytest.mark.parametrize(("module", "end"), [("self_attn", "o"), ("mlp", "down")])
@torch.no_grad()
def test_a_module_that_does_something_after_its_last_layer_is_computed(tmp_path: Path, module: str, end: str) -> None:
    layer, states, call, names = prepared(save_tiny(tmp_path, "llama"))
    changed = layer.get_submodule(module)
    forward = changed.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        return (2 * found[0], *found[1:]) if isinstance(found, tuple) else 2 * found

    changed.forward = doubled
    growing = GrowingLayer(layer, states.clone(), call, [names["o"], names["down"]])
    for part in batches(states):
        growing.inputs([names[end]], part)
    growing.advance()
    assert changed.forward is doubled
    advance(layer, states, call)
    assert torch.equal(growing.states, states)
