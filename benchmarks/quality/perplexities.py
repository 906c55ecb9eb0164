"""Perplexity of a text, by onnxruntime for exported folders and by torch for checkpoints, over the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairy2i_runtime import load
from fairy2i_runtime.measure.perplexity import Perplexity, Window, Windows, measure, model_scorer, sliding_windows
from fairy2i_runtime.measure.scoring import F64, token_log_probs
from fairy2i_runtime.text.tokenizer import Tokenizer


def windows_of(folder: Path, text: str, window: int, tokens: int | None, separator: str | None) -> Windows:
    """How the text is cut.

    Args:
        folder: holds the tokenizer.
        text: the text.
        window: the most tokens of a window.
        tokens: use at most so many; None: all.
        separator: None: protocol ``sliding`` of docs/tools.md. Else what stands between documents, each of which is read
            on its own from its first token on, cut to the window: for models that only know short texts.
    """
    tokenizer = Tokenizer.load(folder)
    if separator is None:
        return sliding_windows(tokenizer, text, window, tokens=tokens)
    documents = [tokenizer.encode(part.strip())[:window] for part in text.split(separator) if part.strip()]
    windows = [Window(ids, np.ones(len(ids) - 1, np.bool_)) for ids in documents]
    count = sum(len(ids) - 1 for ids in documents)
    statement = f"every document on its own, cut to {window} tokens; exp(mean loss of all tokens but the first of each)"
    return Windows("sliding", statement, windows, window, None, sum(map(len, documents)), None, count)


def in_onnxruntime(folder: Path, windows: Windows, kernel: str) -> Perplexity:
    """An exported folder."""
    return measure(windows, model_scorer(load(folder, threads=1, kernel=kernel)))


def in_torch(checkpoint: Path, windows: Windows) -> Perplexity:
    """A checkpoint in float32, its layers quantized as config.json's ``fairy2i`` says (not at all without)."""
    import torch
    from transformers import AutoModelForCausalLM

    from fairy2i_export.train import convert, load_learned, prepare

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    if getattr(model.config, "fairy2i", None):
        prepare(model)
        load_learned(model, checkpoint)
        model = convert(model)

    def score(ids: Sequence[int]) -> F64:
        array = np.asarray(ids, np.int64)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(array[None, :-1]), use_cache=False).logits[0]
        return token_log_probs(logits.float().numpy(), array[1:])

    return measure(windows, score)
