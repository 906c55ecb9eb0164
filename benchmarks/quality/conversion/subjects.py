"""A model to be measured, whichever way it is run: a float checkpoint in torch, or an exported folder in onnxruntime.

Both score given tokens and answer prompts; both sample with the same code, that of the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fairy2i_runtime import load
from fairy2i_runtime.commands.chat import CHAT_DEFAULTS
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.measure.scoring import TokenScores, score_tokens, token_log_probs
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.options import GenerationOptions
from fairy2i_runtime.text.recommended import recommended_sampling
from fairy2i_runtime.text.sampling import Sampler
from fairy2i_runtime.text.tokenizer import Tokenizer

FLOAT = "float"  # stands for a kernel where a checkpoint is run in torch


class Subject(Protocol):
    """What is measured."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    folder: Path

    def score(self, ids: Sequence[int], first: int = 1) -> TokenScores:
        """Scores of ``ids[first:]``."""

    def write(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[int]]:
        """Tokens that follow each prompt, the end token, if it came to one, included; the seed counts up with the prompts."""


def is_exported(path: Path) -> bool:
    return (path / "model.onnx").is_file()


def open_subject(path: Path, kernel: str = "exact", threads: int | None = None) -> Subject:
    """An exported folder, or with a path that is none, a checkpoint; the kernel then means nothing."""
    return Exported(path, kernel, threads) if is_exported(path) else Float(path, threads)


def sampling_of(folder: Path, seed: int, max_new_tokens: int) -> GenerationOptions:
    """As ``fairy2i chat`` samples: what generation_config.json recommends, else the defaults of that command."""
    recommended = recommended_sampling(folder)
    defaults = {} if recommended.get("temperature") else CHAT_DEFAULTS
    return GenerationOptions.of(**{**defaults, **recommended}, seed=seed, max_new_tokens=max_new_tokens)


def _for_prompt(options: GenerationOptions, number: int) -> GenerationOptions:
    return replace(options, seed=None if options.seed is None else options.seed + number)


class Exported:
    """A folder that fairy2i-export wrote."""

    def __init__(self, folder: Path, kernel: str, threads: int | None) -> None:
        # a folder of another backend has no kernels to choose from
        self.model = load(folder, kernel=kernel if open_folder(folder).needs_library else None, threads=threads)
        self.folder, self.tokenizer, self.template = folder, self.model.tokenizer, self.model.chat_template
        self._cache = self.model.decoder.new_cache()  # its beginning serves texts that begin alike

    def score(self, ids: Sequence[int], first: int = 1) -> TokenScores:
        return score_tokens(self.model.decoder, ids, first, self._cache)

    def write(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[int]]:
        written = []
        for number, prompt in enumerate(prompts):
            result = self.model.generate(list(prompt), **vars(_for_prompt(options, number)))
            end = self.tokenizer.eos_id  # which one it was is not told
            ended = result.finish_reason == "eos"
            written.append([*result.token_ids, *([min(self.model.eos_ids) if end is None else end] if ended else [])])
        return written


class Float:
    """A Hugging Face checkpoint in float32."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        if threads is not None:
            torch.set_num_threads(threads)
        self.folder, self.tokenizer = folder, Tokenizer.load(folder)
        self.template = ChatTemplate.load(folder, self.tokenizer.special_tokens)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        stated = self.model.generation_config.eos_token_id
        ends = stated if isinstance(stated, list) else [] if stated is None else [stated]
        self.ends = {*ends, *(() if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,))}

    def score(self, ids: Sequence[int], first: int = 1) -> TokenScores:
        import torch

        array = np.asarray(ids, np.int64)
        with torch.no_grad():
            found = self.model(torch.from_numpy(array[None, :-1]), use_cache=False, logits_to_keep=len(ids) - first)
        logits = found.logits[0].float().numpy()
        return TokenScores(token_log_probs(logits, array[first:]), logits.argmax(-1) == array[first:])

    def write(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[int]]:
        """All prompts together, padded on the left."""
        import torch

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        samplers = [Sampler(_for_prompt(options, number)) for number in range(len(prompts))]
        seen = [list(prompt) for prompt in prompts]
        running = set(range(len(prompts)))
        cache = None
        for _ in range(options.max_new_tokens or 1):
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            with torch.no_grad():
                found = self.model(
                    ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            cache = found.past_key_values
            logits = found.logits[:, -1].float().numpy()
            ids = torch.zeros(len(prompts), 1, dtype=torch.long)
            for number in sorted(running):
                token = samplers[number].next(logits[number], seen[number])
                seen[number].append(token)
                ids[number] = token
                if token in self.ends:
                    running.discard(number)
            if not running:
                break
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.long)], 1)
        return [tokens[len(prompt) :] for tokens, prompt in zip(seen, prompts, strict=True)]
