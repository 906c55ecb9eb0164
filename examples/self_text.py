"""Let a chat model write the text that it is then calibrated with: no data is needed, and it is of the kind the model is for.

Conversations that the model makes up from its chat template: it goes on from the opening of a user's turn, answers, asks again.
All are written at the same time. Usage: self_text.py CHECKPOINT TEXT [--conversations 16] [--tokens 512] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # many small steps: threads that spin are slow where others compute, too

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

MARK = "@@"  # stands for the user's words
SPARE = 16  # tokens that are written beyond those asked for: what is read back may have fewer
SECONDS = 5.0  # between two messages


class Progress(StoppingCriteria):  # type: ignore[misc]
    """Says how far the text is, and never stops it."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.said = time.monotonic()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        length = input_ids.shape[1]
        if length == self.tokens or time.monotonic() - self.said > SECONDS:
            self.said = time.monotonic()
            print(f"writing: {length} of {self.tokens} tokens of {len(input_ids)} conversations", flush=True)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def opening(tokenizer: Any) -> str:
    """What the chat template writes before the first words of a user."""
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    return text[: text.index(MARK)]


def number_type() -> torch.dtype:
    """bfloat16 where the processor multiplies it, which halves the time; elsewhere it would be slower."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("bf16") else torch.float32


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The beginning of a text that is read as exactly so many tokens, if there is one: a cut can join or split the last ones."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for length in range(tokens, len(ids) + 1):
        found: str = tokenizer.decode(ids[:length])
        if len(tokenizer(found, add_special_tokens=False).input_ids) == tokens:
            return found
    return tokenizer.decode(ids[:tokens])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--conversations", type=int, default=16)
    # as many as a window of the calibration: then each of its windows begins as conversations do
    parser.add_argument("--tokens", type=int, default=512, help="of each conversation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=number_type()).eval()
    model.generation_config.eos_token_id = None  # one turn after the other until there are enough tokens
    start = tokenizer(opening(tokenizer), add_special_tokens=False, return_tensors="pt").input_ids
    length = options.tokens + SPARE
    with torch.no_grad():
        written = model.generate(
            start.expand(options.conversations, -1),
            attention_mask=torch.ones(options.conversations, start.shape[1], dtype=torch.long),
            max_new_tokens=length - start.shape[1],
            do_sample=True,
            temperature=0.8,
            top_k=50,
            top_p=1.0,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=True,
            stopping_criteria=StoppingCriteriaList([Progress(length)]),
        )
    unfinished = options.text.with_name(f".{options.text.name}.new")
    unfinished.write_text(
        "".join(cut(tokenizer, tokenizer.decode(row), options.tokens) for row in written), encoding="utf-8"
    )
    unfinished.replace(options.text)


if __name__ == "__main__":
    main()
