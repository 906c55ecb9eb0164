"""Training data of stories260K: stories that the float model writes, windows of real text, and batches of both."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from stories260k import BOS
from tokenizers import Tokenizer
from torch import Tensor

STRETCH = 256  # tokens the teacher writes in one go, as the time grows with the square; longer windows join several


def teacher_stories(teacher: Any, count: int, length: int, seed: int, file: Path | None, progress: Progress) -> Tensor:
    """``count`` windows of ``length`` tokens written by the teacher: int64 [count, length].

    Args:
        teacher: a Hugging Face causal language model.
        count: how many windows.
        length: tokens per window; beyond STRETCH a multiple of it.
        seed: of the sampling.
        file: the stories are read from this .npy file if it exists and written to it otherwise.
        progress: where progress goes.
    """
    stretch = min(length, STRETCH)
    if length % stretch:
        sys.exit(f"a window has to be a multiple of {STRETCH} tokens long, or shorter than that: got {length}")
    stretches = count * length // stretch
    if file is None or not file.exists():
        stories = sample_stories(teacher, stretches, stretch, seed, progress)
        if file is not None:
            np.save(file, stories.numpy().astype(np.uint16))
    else:
        stories = torch.from_numpy(np.load(file).astype(np.int64))[:stretches]
        if stories.shape != (stretches, stretch):
            sys.exit(f"{file} holds {tuple(stories.shape)} tokens, not ({stretches}, {stretch}): delete it to sample anew")
    return stories.reshape(count, length)


@torch.no_grad()
def sample_stories(teacher: Any, count: int, length: int, seed: int, progress: Progress) -> Tensor:
    """Let the teacher write ``count`` stretches of ``length`` tokens at temperature 1: int64 [count, length].

    A stretch begins with BOS; when a story ends (the next BOS) another one follows, as in the teacher's own training.
    """
    torch.manual_seed(seed)
    batches, batch = [], 128
    for _ in progress.track(range(math.ceil(count / batch)), description="teacher writes stories"):
        start = torch.full((batch, 1), BOS)
        batches.append(
            teacher.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_length=length,
                eos_token_id=None,
                pad_token_id=0,
            )
        )
    return torch.cat(batches)[:count]


def text_windows(tokenizer: Tokenizer, path: Path, length: int) -> Tensor:
    """Overlapping windows of ``length`` tokens out of a text file, each led by BOS: int64 [windows, length]."""
    tokens = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
    body = length - 1
    return torch.tensor([[BOS, *tokens[i : i + body]] for i in range(0, len(tokens) - body, length // 4)])


def batch_rows(stories: int, texts: int, batch: int, text_share: float, seed: int) -> Iterator[Tensor]:
    """Endless batches of row numbers: stories are rows 0 ..., windows of real text follow; each kind in shuffled rounds."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(first: int, count: int) -> Iterator[int]:
        while True:
            yield from (first + torch.randperm(count, generator=generator)).tolist()

    story_rows, text_rows = shuffled(0, stories), shuffled(stories, texts)
    from_text = round(batch * text_share)
    while True:
        yield torch.tensor([*islice(story_rows, batch - from_text), *islice(text_rows, from_text)])
