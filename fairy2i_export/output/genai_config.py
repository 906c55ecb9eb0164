"""genai_config.json, what onnxruntime-genai needs to know about the exported model, and what other hosts read in its place."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.onnx_graph.decoder_graph import PAST, PRESENT
from fairy2i_export.source.checkpoint import read_json
from fairy2i_export.source.text.tokenizer_files import SpecialTokens
from fairy2i_runtime.errors import Fairy2iWarning
from fairy2i_runtime.folder import GENERATION_FILE, KERNEL_ENTRY, LIBRARY_ENTRY
from fairy2i_runtime.text.recommended import recommended_sampling

# A bare name: found beside this file, or among the libraries already loaded. It is the one of Linux and Android on every system: a
# folder holds no code and is the same wherever it was made; fairy2i_runtime.genai overlays the name (docs/runtime.md).
LIBRARY = "libfairy2i_ops.so"
GENAI_CONFIG = "genai_config.json"
_EOS = "eos_token_id"
_MAX_LENGTH = 2048  # genai allocates the whole KV cache for max_length tokens up front


def genai_config(
    decoder: Decoder,
    tokens: SpecialTokens,
    context_length: int,
    sampling: dict[str, Any],
    *,
    library: bool = True,
    kernel: str | None = None,
) -> dict[str, Any]:
    """The configuration as a JSON object.

    Args:
        decoder: the model.
        tokens: special token ids.
        context_length: positions the rotary tables cover.
        sampling: what the model recommends, as :func:`~fairy2i_runtime.text.recommended.recommended_sampling` has it; may be
            empty.
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
        model[_EOS] = _one_or_list(tokens.eos)
    pad = tokens.pad if tokens.pad is not None else next(iter(tokens.eos), None)
    if pad is not None:
        model["pad_token_id"] = pad
    search = {
        "do_sample": bool(sampling.get("temperature")),
        "max_length": min(context_length, _MAX_LENGTH),
        "min_length": 0,
        "num_beams": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": sampling.get("repetition_penalty", 1.0),
        "temperature": sampling.get("temperature") or 1.0,  # 0 is no value there: do_sample says it
        "top_k": sampling.get("top_k", 50),
        "top_p": sampling.get("top_p", 1.0),
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Fairy2iWarning)  # told before, by sampling_warnings
        sampling = recommended_sampling(folder)
    config = genai_config(decoder, tokens, context_length, sampling, library=library, kernel=kernel)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_end_tokens(folder: Path, eos: Sequence[int]) -> None:
    """Make generation_config.json name these end tokens, the first the most important, and leave the rest of it as it is.

    It is where transformers and programs in its manner look for them, so that they end a text where genai_config.json does.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / GENERATION_FILE
    config = read_json(path) if path.exists() else {}
    same = [json.dumps(value) for value in (list(eos), _one_or_list(eos) if eos else None)]  # as text: 1 is True, and 1.0
    if eos and json.dumps(config.get(_EOS)) not in same:
        path.write_text(json.dumps({**config, _EOS: _one_or_list(eos)}, indent=2) + "\n", encoding="utf-8")


def _one_or_list(eos: Sequence[int]) -> int | list[int]:
    return eos[0] if len(eos) == 1 else list(eos)


def sampling_warnings(directory: Path) -> list[str]:
    """What a checkpoint's generation_config.json says about sampling and is no value for it, a sentence each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Fairy2iWarning)
        recommended_sampling(directory)
    return [str(warning.message) for warning in caught if issubclass(warning.category, Fairy2iWarning)]
