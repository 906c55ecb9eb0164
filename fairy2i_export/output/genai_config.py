"""genai_config.json: what onnxruntime-genai needs to know about the exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.onnx_graph.decoder_graph import PAST, PRESENT
from fairy2i_export.source.checkpoint import read_json
from fairy2i_export.source.text.tokenizer_files import SpecialTokens
from fairy2i_runtime.folder import KERNEL_ENTRY, LIBRARY_ENTRY

# A bare name: found beside this file, or among the libraries already loaded. It is the one of Linux and Android on every system: a
# folder holds no code and is the same wherever it was made; fairy2i_runtime.genai overlays the name (docs/runtime.md).
LIBRARY = "libfairy2i_ops.so"
GENAI_CONFIG = "genai_config.json"
_MAX_NUMBER = (1 << 31) - 1  # of a setting
_MAX_LENGTH = 2048  # genai allocates the whole KV cache for max_length tokens up front


def genai_config(
    decoder: Decoder,
    tokens: SpecialTokens,
    context_length: int,
    generation: dict[str, Any],
    *,
    library: bool = True,
    kernel: str | None = None,
) -> dict[str, Any]:
    """The configuration as a JSON object.

    Args:
        decoder: the model.
        tokens: special token ids.
        context_length: positions the rotary tables cover.
        generation: the checkpoint's generation_config.json, for sampling defaults; may be empty.
        library: whether the model needs the operator library; without the entry fairy2i_runtime does not load it either.
        kernel: to be run where nobody chooses one; None = the library's default.
    """
    model: dict[str, Any] = {
        "type": decoder.genai_type,
        "context_length": context_length,
        "vocab_size": decoder.vocab_size,
        "decoder": {
            "filename": "model.onnx",
            "session_options": {
                "log_id": "onnxruntime-genai",
                "provider_options": [],
                **({LIBRARY_ENTRY: LIBRARY} if library else {}),
                **({KERNEL_ENTRY: kernel} if kernel is not None else {}),  # genai hands on what it does not know
            },
            "head_size": decoder.head_dim,
            "hidden_size": decoder.hidden_size,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "num_hidden_layers": decoder.layers,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": PAST.format("%d", "key"),
                "past_value_names": PAST.format("%d", "value"),
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": PRESENT.format("%d", "key"),
                "present_value_names": PRESENT.format("%d", "value"),
            },
        },
    }
    if tokens.bos is not None:
        model["bos_token_id"] = tokens.bos
    if tokens.eos:
        model["eos_token_id"] = tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos)
    pad = tokens.pad if tokens.pad is not None else next(iter(tokens.eos), None)
    if pad is not None:
        model["pad_token_id"] = pad
    search = {
        "do_sample": bool(generation.get("do_sample", False)),
        "max_length": min(context_length, _MAX_LENGTH),
        "min_length": 0,
        "num_beams": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": _number(generation, "repetition_penalty", 1.0),
        "temperature": _number(generation, "temperature", 1.0),
        "top_k": int(_number(generation, "top_k", 50)),
        "top_p": _number(generation, "top_p", 1.0),
    }
    return {"model": model, "search": search}


def write_genai_config(
    folder: Path,
    decoder: Decoder,
    tokens: SpecialTokens,
    context_length: int,
    *,
    library: bool = True,
    kernel: str | None = None,
) -> None:
    """Write genai_config.json into a folder that already holds the copied files of the checkpoint."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    config = genai_config(decoder, tokens, context_length, generation, library=library, kernel=kernel)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _number(values: dict[str, Any], key: str, default: float) -> float:
    """A setting that hosts can read: JSON has no NaN, and they no integers of any length."""
    value = values.get(key)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    return value if known and value is not None else default
