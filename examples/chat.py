"""Chat with a model folder written by fairy2i-export, in the terminal.

    python examples/chat.py MODEL_DIR [--threads N] [--system TEXT] [--temperature T] ...

An empty line or Ctrl-D ends; Ctrl-C stops an answer. Needs no more than fairy2i_runtime.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import fairy2i_runtime

with suppress(ImportError):
    import readline  # noqa: F401  # input() edits lines with it

if hasattr(sys.stdin, "reconfigure"):
    sys.stdin.reconfigure(errors="replace")  # bytes that are no text do not end the conversation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with a Fairy2i model.")
    parser.add_argument("folder", metavar="MODEL_DIR", help="folder written by fairy2i-export")
    parser.add_argument("--threads", type=int, help="number of threads (default: one per physical core)")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token (default: as the model says)")
    parser.add_argument("--repetition-penalty", type=float, help="above 1 keeps a small model from going in circles")
    parser.add_argument("--seed", type=int, help="makes the answers repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="the most tokens of an answer (default: 256)")
    return parser.parse_args()


def chosen_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling that the model's generation_config.json recommends, and what the user says otherwise."""
    names = ("temperature", "repetition_penalty", "seed", "max_new_tokens")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return vars(fairy2i_runtime.GenerationOptions.from_folder(arguments.folder, **chosen))


def answer(conversation: fairy2i_runtime.Conversation, question: str, options: dict[str, Any]) -> None:
    """Print the answer piece by piece. The conversation remembers it, also if Ctrl-C cuts it short."""
    stream = conversation.stream(question, **options)
    try:
        with closing(stream):
            for piece in stream:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print()


def questions() -> Iterator[str]:
    """What the user types, line by line, until an empty line, Ctrl-D or Ctrl-C."""
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        if not question.strip():
            return
        yield question


def main() -> None:
    arguments = parse_arguments()
    model = fairy2i_runtime.load(arguments.folder, threads=arguments.threads)
    options = chosen_options(arguments)
    conversation = model.conversation(arguments.system)
    if not conversation.is_chat:
        print("This is a base model: it continues what you write, every line anew.")
    for question in questions():
        answer(conversation, question, options)
    print(f"\n{model.stats}")


if __name__ == "__main__":
    try:
        main()
    except fairy2i_runtime.Fairy2iRuntimeError as error:
        print(f"chat.py: {error}", file=sys.stderr)
        sys.exit(2)
