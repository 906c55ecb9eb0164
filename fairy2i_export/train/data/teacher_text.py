"""Training text that the teacher writes itself, for when there is no other."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairy2i_export.train.data.blocks import Blocks, kept_json
from fairy2i_export.train.data.packing import Encoder
from fairy2i_export.train.recipe import TeacherStarts

_BATCH, _MOST = 16, 4096  # sequences written together: in main memory, and at most on a device
_SHARE = 3  # the part of a device's free memory that their KV cache may take


@dataclass(frozen=True)
class Sampling:
    """How a teacher writes.

    Attributes:
        starts: ``bos``: a sequence begins with the beginning-of-text token, or the end-of-text token where there is none, as the
            texts did that the teacher learned from; of a chat model that is mostly a turn of its template. ``mixed``: every
            other one begins with any token of the vocabulary but the added ones, and so with a text of another kind.
        temperature: of the sampling, from all tokens.
        seed: of the sampling.
    """

    starts: TeacherStarts = "bos"
    temperature: float = 1.0
    seed: int = 0


@torch.no_grad()
def teacher_blocks(
    teacher: Any, encoder: Encoder, tokens: int, length: int, how: Sampling, directory: Path, name: str
) -> Blocks:
    """Blocks sampled from the teacher, kept in a file for the next run with the same choices.

    A block goes on over the end of a document, as texts do in the teacher's own training.

    Args:
        teacher: a Hugging Face causal language model.
        encoder: its tokenizer.
        tokens: how many in all, rounded up to whole blocks.
        length: tokens per block.
        how: it is sampled.
        directory: where the file lies.
        name: what to call the teacher in the file's description.

    Returns:
        uint32 [blocks, length].
    """
    count = math.ceil(tokens / length)
    data, header = directory / "teacher.npy", directory / "teacher.json"
    batch = _batch(teacher, length)
    starts = _first_tokens(teacher, encoder, count, how)
    key = {"teacher": name, "tokens": [count, length], **asdict(how), "start": int(starts[0]), "batch": batch}
    if header.is_file() and data.is_file() and kept_json(header) == key:
        return np.asarray(np.load(data, mmap_mode="r"))
    state = torch.random.get_rng_state()
    torch.manual_seed(how.seed)
    rows = []
    for first in range(0, count, batch):
        begin = torch.from_numpy(starts[first : first + batch, None]).to(teacher.device)
        rows.append(
            teacher.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                temperature=how.temperature,
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


def _first_tokens(teacher: Any, encoder: Encoder, count: int, how: Sampling) -> npt.NDArray[np.int64]:
    """int64 [count]."""
    named = teacher.generation_config.bos_token_id
    bos = teacher.config.bos_token_id if named is None else named
    starts = np.full(count, encoder.eos if bos is None else int(bos), np.int64)
    if how.starts == "mixed":
        added = set(encoder.tokenizer.get_added_tokens_decoder())
        texts = np.array([token for token in range(encoder.tokenizer.get_vocab_size()) if token not in added])
        starts[1::2] = np.random.default_rng(how.seed).choice(texts, len(starts[1::2]))
    return starts


def _batch(teacher: Any, length: int) -> int:
    """Sequences that are written together."""
    if teacher.device.type != "cuda":
        return _BATCH
    config = teacher.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * size * length * teacher.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(teacher.device)
    return int(min(_MOST, max(1, free // _SHARE // cache)))
