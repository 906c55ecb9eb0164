"""Let a model write the text that it is then calibrated with: no data is needed, and it is of the kind the model is for.

Conversations that a chat model makes up from its template: it goes on from the first words of a question, answers, asks again.
The first words differ, for a model left alone asks for few kinds of things, and is then converted for those. Beside them prose,
stories and articles, from a few words: calibrated on conversations alone, a model unlearns other text. A model without a chat
template writes prose only (--conversations 0). All are written at the same time.
Usage: self_text.py CHECKPOINT TEXT [--conversations 32] [--prose 16] [--tokens 256] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # many small steps: threads that spin are slow where others compute, too

# torch and transformers take seconds to import: what is wrong with the arguments is told before
if TYPE_CHECKING:
    import torch

MARK = "@@"  # stands for the user's words
SPARE = 16  # tokens that are written beyond those asked for: what is read back may have fewer
SECONDS = 5.0  # between two messages
TEMPERATURE, ANSWERS = 0.8, 0.6  # of what users say, so that it is varied; of answers, nearer to how they will be asked for
PENALTY = 1.1  # of words that were said: small models go in circles
QUESTIONS = (
    "What is",
    "How does",
    "Explain",
    "",  # whatever it likes
    "Write a short story about",
    "Why do",
    "Tell me about",
    "How can I",
    "What are the",
    "Who was",
    "Describe",
    "",
    "Give me some",
    "What happens when",
    "How do you",
    "Write a poem about",
    "Can you",
    "When did",
    "What is the difference between",
    "",
    "Write a letter to",
    "What should I",
    "Where do",
    "Name three",
    "Is it true that",
    "Compare",
    "How many",
    "",
)
OPENINGS = (
    "Once upon a time",
    "The history of the",
    "The old man",
    '"Where are you',
    "In the summer of",
    "She looked at the",
    "The village was",
    "As the ship",
    "It was a cold",
    "The city of",
    "When the children",
    "I remember the day",
    "The king and his",
    "He walked slowly",
    "The most important part of",
    "They came to the",
)


class Progress:
    """A StoppingCriteria of transformers that says how far the text is, and never stops it."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.said = time.monotonic()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        length = input_ids.shape[1]
        if length == self.tokens or time.monotonic() - self.said > SECONDS:
            self.said = time.monotonic()
            print(f"writing: {length} of {self.tokens} tokens of {len(input_ids)} texts", flush=True)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Sober:
    """A LogitsProcessor of transformers that sharpens the distribution where the assistant speaks.

    Args:
        begins: the tokens with which the template lets the assistant begin.
        end: the token that ends its turn.
    """

    def __init__(self, begins: list[int], end: int | None) -> None:
        self.begins, self.end = begins, end
        self.speaks: list[bool] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        rows = input_ids[:, -len(self.begins) :].tolist()
        self.speaks = self.speaks or [False] * len(rows)
        self.speaks = [
            row == self.begins or (before and row[-1] != self.end) for row, before in zip(rows, self.speaks, strict=True)
        ]
        return scores * torch.tensor([TEMPERATURE / ANSWERS if speaks else 1.0 for speaks in self.speaks])[:, None]


def answering(tokenizer: Any) -> list[Sober]:
    """What sharpens answers, if the template says where they begin."""
    asked = [{"role": "user", "content": MARK}]
    try:
        plain = tokenizer.apply_chat_template(asked, tokenize=False)
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:  # as in opening()
        return []
    begins = tokenizer(prompt.removeprefix(plain), add_special_tokens=False).input_ids if prompt.startswith(plain) else []
    return [Sober(begins, tokenizer.eos_token_id)] if begins else []


def opening(tokenizer: Any) -> str:
    """What the chat template writes before the first words of a user.

    Raises:
        ValueError: there is no template, or it writes no such words.
    """
    if not tokenizer.chat_template:
        raise ValueError("expected a chat model, found no chat template; --conversations 0 lets it write prose only")
    try:
        text: str = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
        return text[: text.index(MARK)]
    except Exception as error:  # a template is a program: it raises what it likes
        raise ValueError(f"its chat template makes no text of a user's words: {error}") from error


def trouble_with(text: Path) -> str:
    """Why no file of that name can be written; empty if it can."""
    folder = text.absolute().parent
    if os.path.lexists(text) and not text.is_file():
        return "expected the name of a file, found something else of that name"
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write to {folder}"


def write(path: Path, text: str) -> str:
    """Write a file as a whole; where it is kept instead if that fails, and why, empty if not."""
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt", delete=False) as kept:
            kept.write(text)
        return f"cannot be written: {error.strerror or error}; the text is kept in {kept.name}"
    return ""


def number_type() -> torch.dtype:
    """bfloat16 where that halves the time; elsewhere it would be slower."""
    import torch

    from fairy2i_export.compile.calibrate.streams import has_fast_bfloat16

    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


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
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--prose", type=int, default=16, help="pieces of prose")
    # two fill a window of the calibration: then each of its windows begins as conversations do
    parser.add_argument("--tokens", type=int, default=256, help="of each of them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def refuse(what: object, why: object) -> NoReturn:
        parser.exit(2, f"{parser.prog}: error: {what}: {' '.join(str(why).split())}\n")

    for name, least in (("conversations", 0), ("prose", 0), ("tokens", 1)):
        if getattr(options, name) < least:
            refuse(f"--{name}", f"expected at least {least}, got {getattr(options, name)}")
    if options.conversations + options.prose == 0:
        refuse("--conversations, --prose", "expected something to write, got 0 of both")
    if problem := trouble_with(options.text):
        refuse(options.text, problem)
    if not (options.checkpoint / "config.json").is_file():
        refuse(options.checkpoint, "expected a folder with a Hugging Face model, found no config.json in it")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, StoppingCriteriaList

    torch.manual_seed(options.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
        first = opening(tokenizer) if options.conversations else ""
        begun = [first + QUESTIONS[index % len(QUESTIONS)] for index in range(options.conversations)]
        model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=number_type()).eval()
    except (OSError, ValueError) as error:
        refuse(options.checkpoint, error)
    model.generation_config.eos_token_id = None  # one turn after the other until there are enough tokens
    begun += [OPENINGS[index % len(OPENINGS)] for index in range(options.prose)]
    starts = [tokenizer(text, add_special_tokens=False).input_ids for text in begun]
    longest, length = max(map(len, starts)), options.tokens + SPARE
    if longest >= length:
        refuse("--tokens", f"expected more than the {longest} that a conversation begins with, got {options.tokens}")
    # the shorter ones begin later, behind tokens that are not seen
    ids = torch.tensor([[0] * (longest - len(start)) + start for start in starts])
    seen = torch.tensor([[0] * (longest - len(start)) + [1] * len(start) for start in starts])
    with torch.no_grad():
        written = model.generate(
            ids,
            attention_mask=seen,
            max_new_tokens=length - min(map(len, starts)),
            do_sample=True,
            temperature=TEMPERATURE,
            logits_processor=LogitsProcessorList(answering(tokenizer) if options.conversations else []),
            top_k=50,
            top_p=1.0,
            repetition_penalty=PENALTY,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=True,
            stopping_criteria=StoppingCriteriaList([Progress(longest + length - min(map(len, starts)))]),
        )
    rows = (row[longest - len(start) :] for row, start in zip(written, starts, strict=True))
    text = "".join(cut(tokenizer, tokenizer.decode(row), options.tokens) for row in rows)
    if problem := write(options.text, text):
        refuse(options.text, problem)


if __name__ == "__main__":
    main()
