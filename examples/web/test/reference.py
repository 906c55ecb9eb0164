"""Write reference.json, what Python does with the models in a folder: greedy tokens, conversations, encodings.

Run as ``python reference.py SITE``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fairy2i_runtime

PROMPT, NEW_TOKENS = "Once upon a time", 200
QUESTIONS, ANSWER_TOKENS = ["Tell me of a cat.", "And of a dog?"], 40
TEXTS = [
    "Once upon a time",
    " two  spaces ",
    "line\nbreaks\n\n\there",
    "Grüße, naïve café",
    "你好,世界",
    "😀👩‍👩‍👧 <s> </s>",
    "1234567 1+1=2",
    "don't I'LL",
]


def reference(folder: Path) -> dict[str, object]:
    """Results of fairy2i_runtime for one model, as JSON."""
    model = fairy2i_runtime.load(folder)
    story = model.generate(PROMPT, max_new_tokens=NEW_TOKENS)
    turns = []
    if model.chat_template is not None:
        conversation = model.conversation()
        for question in QUESTIONS:
            answer = conversation.ask(question, max_new_tokens=ANSWER_TOKENS)
            turns.append({"question": question, "text": answer.text, "tokens": answer.token_ids})
    return {
        "prompt": PROMPT,
        "limit": NEW_TOKENS,
        "text": story.text,
        "tokens": story.token_ids,
        "answer_limit": ANSWER_TOKENS,
        "turns": turns,
        "encodings": {text: model.tokenizer.encode(text) for text in TEXTS},
    }


def main() -> None:
    """Write reference.json into the folder given, for all models in it."""
    site = Path(sys.argv[1])
    folders = sorted(path.parent for path in site.glob("*/genai_config.json"))
    results = {folder.name: reference(folder) for folder in folders}
    (site / "reference.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
