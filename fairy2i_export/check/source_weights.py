"""The source checkpoint as reference: its weights quantized anew, and the model run by torch and transformers.

torch and transformers belong to the ``train`` extra and are imported only inside functions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fairy2i_export.check.layers import Node
from fairy2i_export.codes.layout import unpack
from fairy2i_export.codes.quantizer import PROFILES, QUANTIZERS, QuantizedLinear, quantize
from fairy2i_export.decoder.rope import stretch_context
from fairy2i_export.errors import CheckpointError, FormatError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import ColumnChoice, RowChoice, ScaleChoice, quantizer_arguments

F32 = npt.NDArray[np.float32]
# metadata key -> values; the first one holds where models of earlier versions have none
_HOW: dict[str, tuple[str, ...]] = {
    "profile": ("", *PROFILES),
    "quantizer": QUANTIZERS,
    "row_multiplier": get_args(RowChoice),
    "col_multiplier": get_args(ColumnChoice),
    "scales": get_args(ScaleChoice),
}

CALIBRATED_NOTE = (
    "codes were found by calibration on a text (--calibrate): the source alone does not give them, so they are not compared with "
    "it, and torch multiplies by the model's own dequantized layers"
)


def torch_is_installed() -> bool:
    """Whether the ``train`` extra (torch and transformers) can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class SourceWeights:
    """Weights of a checkpoint, quantized as a model's metadata says it was exported.

    A calibrated model cannot be made again from the source alone: its quantized layers are taken from the model itself.

    Attributes:
        calibrated: the model's codes come from calibration.
        joint: codes of all stages were found together, not one stage after the other.

    Args:
        checkpoint: the opened source.
        metadata: the model's metadata.

    Raises:
        FormatError: if the metadata does not say how.
    """

    def __init__(self, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
        self.checkpoint = checkpoint
        self.calibrated = "fairy2i.calibration" in metadata
        self.joint = self.calibrated or metadata.get("fairy2i.quantizer") == "joint"
        self.rope_scaling = metadata.get("fairy2i.rope_scaling")
        self._how = {key: metadata.get(f"fairy2i.{key}", first) for key, (first, *_) in _HOW.items()}
        known = self._how["profile"] and all(self._how[key] in allowed for key, allowed in _HOW.items())
        if not (known or self.calibrated):
            raise FormatError(
                f"the model's metadata does not say how it was quantized ({', '.join(f'fairy2i.{key}' for key in _HOW)}); "
                "it was not written by fairy2i-export or has been edited"
            )

    def tensor_of(self, module: str) -> str:
        """The tensor that holds a module's weight; a tied head shares the embedding's.

        Raises:
            CheckpointError: if there is none.
        """
        name = f"{module}.weight"
        if name in self.checkpoint:
            return name
        if module.endswith("lm_head") and "model.embed_tokens.weight" in self.checkpoint:
            return "model.embed_tokens.weight"
        raise CheckpointError(f"{self.checkpoint.directory}: expected a tensor {name} for the node of that name, found none")

    def quantized(self, node: Node) -> QuantizedLinear:
        if self.calibrated:
            return unpack(node.operands)
        tensor = self.tensor_of(node.name)
        weight = self.checkpoint.read(tensor)
        how: Any = SimpleNamespace(stages=node.operands.stages, **self._how)
        sizes = 2 * node.operands.n, 2 * node.operands.m
        arguments = quantizer_arguments(self.checkpoint, node.name, *sizes, how)
        return quantize(weight, how.stages, how.profile, name=tensor, **arguments)

    def differing(self, nodes: list[Node], done: Callable[[], None] = lambda: None) -> Iterator[tuple[str, str]]:
        """(node, reason) for every node that does not hold what quantizing the source gives."""
        for node in nodes:
            expected, found = self.quantized(node), unpack(node.operands)
            if expected.codes.shape != found.codes.shape:
                yield (
                    node.name,
                    f"the source has {2 * expected.n} x {2 * expected.m}, the model {2 * found.n} x {2 * found.m}",
                )
            elif not np.array_equal(expected.codes, found.codes):
                yield node.name, f"{np.mean(expected.codes != found.codes):.2%} of the codes differ"
            elif not np.array_equal(expected.scales, found.scales):
                yield node.name, "the scales differ"
            elif not _equal(expected.row_multiplier, found.row_multiplier):
                yield node.name, "the row multipliers differ"
            elif not _equal(expected.col_multiplier, found.col_multiplier):
                yield node.name, "the column multipliers differ"
            done()


def _equal(a: F32 | None, b: F32 | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)


def torch_logits(source: SourceWeights, nodes: list[Node], ids: npt.NDArray[np.int64]) -> F32:
    """Logits [length, vocab] of a text [length] by the model of :func:`torch_model`."""
    return model_logits(torch_model(source, nodes), ids)


def model_logits(model: Any, ids: npt.NDArray[np.int64]) -> F32:
    """Logits [length, vocab] of a text [length] by a transformers model."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids[None]), use_cache=False).logits[0]
    return np.asarray(logits.float().numpy())


def torch_model(source: SourceWeights, nodes: list[Node]) -> Any:
    """The source as a transformers model in float32, with dequantized weights in the rewritten layers.

    Raises:
        CheckpointError: if transformers cannot build the model, or its parameters are not those of the checkpoint.
    """
    import torch

    checkpoint = source.checkpoint
    rewritten = {node.name: node for node in nodes}
    # a quantized head no longer equals the embedding
    model, config = meta_model(checkpoint, source.rope_scaling, "eager", untied="lm_head" in rewritten)
    state: dict[str, Any] = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        if module in rewritten:
            array = source.quantized(rewritten[module]).dequantize("none")
        elif name in checkpoint or module.endswith("lm_head"):
            array = checkpoint.read(name if name in checkpoint else source.tensor_of(module)).astype(np.float32)
        else:
            raise CheckpointError(f"{checkpoint.directory}: tensor {name}, which transformers needs, is missing")
        state[name] = torch.from_numpy(np.ascontiguousarray(array))
    model.load_state_dict(state, strict=True, assign=True)
    remake_buffers(model, config)
    return model.eval()


def meta_model(checkpoint: Checkpoint, rope_scaling: str | None, attention: str, *, untied: bool = False) -> tuple[Any, Any]:
    """The source's transformers model without values, on torch's meta device, and its configuration.

    Args:
        checkpoint: the source.
        rope_scaling: as for the export, or None.
        attention: implementation of attention: eager or sdpa.
        untied: give lm_head a weight of its own.
    """
    import torch
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
    if rope_scaling is not None:
        settings = stretch_context(checkpoint.config, rope_scaling)
        config = type(config)(**{key: value for key, value in settings.items() if key != "model_type"})
    if untied:
        config.tie_word_embeddings = False
    with torch.device("meta"):
        auto: Any = transformers.AutoModelForCausalLM
        model: Any = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return model, config


def remake_buffers(model: Any, config: Any) -> None:
    """Compute the buffers that are not part of a checkpoint: on the meta device they have no values.

    Raises:
        CheckpointError: if the model has buffers of an unknown kind.
    """
    import torch

    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    if hasattr(model.model.embed_tokens, "embed_scale"):  # Gemma
        model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        raise CheckpointError(
            f"this version of transformers needs values for {', '.join(empty[:3])} that are not known here"
        )


def is_rounded(metadata: dict[str, str], checkpoint: Checkpoint) -> bool:
    """Whether embedding, head or cache hold less than the checkpoint's values, so that logits may differ for it."""
    embedding, head = metadata.get("fairy2i.embedding", "float32"), metadata.get("fairy2i.lm_head", "fairy2i")
    if embedding == "int8" or head in ("int8", "int4") or metadata.get("fairy2i.kv_cache", "float32") != "float32":
        return True
    if embedding != "float16":
        return False
    table = checkpoint.read("model.embed_tokens.weight")
    return table.dtype not in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
