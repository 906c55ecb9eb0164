"""Conversations in a file, and what of them is scored: the assistant's words, its end token included.

A file is JSON: how it was made, and ``conversations``, each a ``question``, an ``answer`` and whether the answer is
``finished`` (came to its end; else it was cut).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairy2i_runtime.measure.perplexity import Window, Windows
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, question: str) -> list[int]:
    """A question in the chat template, up to where the assistant begins to speak."""
    return tokenizer.encode(template.render([{"role": "user", "content": question}]), add_special_tokens=False)


def read_conversations(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["conversations"]
    return found


def answer_windows(
    tokenizer: Tokenizer, template: ChatTemplate, conversations: Sequence[dict[str, Any]], end: int | None
) -> Windows:
    """Every conversation as a window of its own of which only the answer is scored.

    Args:
        tokenizer: of the model.
        template: its chat template.
        conversations: from :func:`read_conversations`.
        end: the token that ends a turn; None if the model has none, then no end is scored.
    """
    windows = []
    for conversation in conversations:
        before = prompt_ids(tokenizer, template, conversation["question"])
        answer = tokenizer.encode(conversation["answer"], add_special_tokens=False)
        if conversation["finished"] and end is not None:
            answer = [*answer, end]
        scored = np.zeros(len(before) + len(answer) - 1, np.bool_)
        scored[len(before) - 1 :] = True  # the first is that of the second token
        windows.append(Window([*before, *answer], scored))
    count = sum(int(window.scored.sum()) for window in windows)
    longest = max(len(window.ids) for window in windows)
    statement = "every conversation on its own, in the chat template; tokens of the answers are scored, end tokens included"
    return Windows("sliding", statement, windows, longest, None, sum(len(w.ids) for w in windows), None, count)
