"""Training text that the teacher writes itself, for when there is no other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairy2i_export.train.data.blocks import Blocks, kept_json
from fairy2i_export.train.data.packing import Encoder

_BATCH = 16  # sequences written together


@torch.no_grad()
def teacher_blocks(
    teacher: Any,
    encoder: Encoder,
    tokens: int,
    length: int,
    seed: int,
    directory: Path,
    name: str,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Blocks:
    """Blocks sampled from the teacher at temperature 1, kept in a file for the next run with the same choices.

    A block begins with the beginning-of-text token (or the end-of-text token where there is none) and goes on over the
    end of a document, as texts do in the teacher's own training.

    Args:
        teacher: a Hugging Face causal language model.
        encoder: its tokenizer.
        tokens: how many in all, rounded up to whole blocks.
        length: tokens per block.
        seed: of the sampling.
        directory: where the file lies.
        name: what to call the teacher in the file's description.
        progress: called with the number of tokens of every batch.

    Returns:
        uint32 [blocks, length].
    """
    count = math.ceil(tokens / length)
    data, header = directory / "teacher.npy", directory / "teacher.json"
    start = _first_token(teacher, encoder)
    key = {"teacher": name, "tokens": [count, length], "seed": seed, "start": start, "batch": _BATCH}
    if header.is_file() and data.is_file() and kept_json(header) == key:
        return np.asarray(np.load(data, mmap_mode="r"))
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    rows = []
    for first in range(0, count, _BATCH):
        begin = torch.full((min(_BATCH, count - first), 1), start, device=teacher.device)
        rows.append(
            teacher.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                max_length=length,
                max_new_tokens=None,
                eos_token_id=None,
                pad_token_id=encoder.eos,
            )
            .cpu()
            .numpy()
            .astype(np.uint32)
        )
        progress(rows[-1].size)
    torch.random.set_rng_state(state)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "teacher.partial.npy"
    try:
        np.save(partial, np.concatenate(rows))
        os.replace(partial, data)
        partial.write_text(json.dumps(key), encoding="utf-8")
        os.replace(partial, header)
    finally:
        partial.unlink(missing_ok=True)
    return np.asarray(np.load(data, mmap_mode="r"))


def _first_token(teacher: Any, encoder: Encoder) -> int:
    named = teacher.generation_config.bos_token_id
    bos = teacher.config.bos_token_id if named is None else named
    return encoder.eos if bos is None else int(bos)
