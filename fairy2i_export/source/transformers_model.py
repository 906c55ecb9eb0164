"""The source as a model of transformers, without values: to calibrate with, and to compare with.

torch and transformers belong to the ``train`` extra and are imported only inside functions.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from fairy2i_export.decoder.rope import stretch_context
from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import Checkpoint


def torch_is_installed() -> bool:
    """Whether the ``train`` extra (torch and transformers) can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


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
