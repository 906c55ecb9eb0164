"""Let a chat model write the text that it is then calibrated with: no data is needed, and it is of the kind the model is for.

Conversations that the model makes up from its chat template: it continues an opened question of a user, then answers it, and
so on. Usage: self_text.py CHECKPOINT TEXT [--conversations 32] [--tokens 512] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MARK = "@@"  # stands for the user's words
BATCH = 16


def opening(tokenizer: object) -> str:
    """What the chat template writes before the first words of a user."""
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)  # type: ignore[attr-defined]
    return text[: text.index(MARK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512, help="of each conversation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # one conversation after the other until there are enough tokens
    start = tokenizer(opening(tokenizer), add_special_tokens=False, return_tensors="pt").input_ids
    written = []
    for first in range(0, options.conversations, BATCH):
        count = min(BATCH, options.conversations - first)
        with torch.no_grad():
            ids = model.generate(
                start.expand(count, -1),
                attention_mask=torch.ones(count, start.shape[1], dtype=torch.long),
                max_new_tokens=options.tokens - start.shape[1],
                do_sample=True,
                temperature=0.9,
                top_p=0.95,
                top_k=0,
                pad_token_id=0,
            )
        written += [tokenizer.decode(row) for row in ids]
        print(f"{len(written)} of {options.conversations} conversations", flush=True)
    unfinished = options.text.with_name(f".{options.text.name}.new")
    unfinished.write_text("\n".join(written), encoding="utf-8")
    unfinished.replace(options.text)


if __name__ == "__main__":
    main()
