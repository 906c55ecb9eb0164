"""Chat with a model folder written by fairy2i-export in onnxruntime-genai: its tokenizer, sampling and key-value cache.

    python examples/genai_chat.py MODEL_DIR [--prompt TEXT] [--tokens N] [--threads N] [--temperature T]

Without --prompt it asks for one after another; an empty line or Ctrl-D ends, Ctrl-C stops an answer. fairy2i_runtime does no
more here than give onnxruntime-genai the operator library.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from chat import questions

import fairy2i_runtime
from fairy2i_runtime import genai


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with a Fairy2i model in onnxruntime-genai.")
    parser.add_argument("folder", metavar="MODEL_DIR", help="folder written by fairy2i-export")
    parser.add_argument("--prompt", help="answer this and end")
    parser.add_argument("--tokens", type=int, default=256, help="the most tokens of an answer (default: 256)")
    parser.add_argument("--threads", type=int, help="number of threads (default: one per physical core)")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token (default: as the model says)")
    return parser.parse_args()


class Chat:
    """A conversation, or, for a model without a chat template, texts that are continued.

    Attributes:
        template_problem: why there is no conversation; empty if there is one.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model = genai.load(arguments.folder, threads=arguments.threads)
        # what genai.load has imported by now; at the top, a package that is not installed would be an error without advice
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        self.tokenizer = self.genai.Tokenizer(self.model)
        self.tokens = arguments.tokens
        self.search: dict[str, Any] = {}  # what is not said here is as genai_config.json has it
        if arguments.temperature is not None:
            self.search["do_sample"] = arguments.temperature > 0
            if arguments.temperature > 0:
                self.search["temperature"] = arguments.temperature
        self.messages: list[dict[str, str]] = []
        self.template_problem = ""
        try:
            self.render([{"role": "user", "content": "Hello"}])
        except RuntimeError as error:
            self.template_problem = str(error)
        # a template writes the tokens at the beginning of a text itself; elsewhere the tokenizer has to add them
        self.tokenizer.update_options(add_special_tokens="true" if self.template_problem else "false")

    def render(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True))

    def answer(self, text: str) -> Iterator[str]:
        """The answer piece by piece. Every turn is read anew with all before it, which takes time and keeps no cache."""
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self.tokenizer.encode(text if self.template_problem else self.render(asked))
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(**self.search)
        generator = self.genai.Generator(self.model, parameters)
        generator.append_tokens(ids)
        stream = self.tokenizer.create_stream()
        pieces = []
        while len(pieces) < self.tokens and not generator.is_done():
            generator.generate_next_token()
            pieces.append(stream.decode(generator.get_next_tokens()[0]))
            yield pieces[-1]
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def show(pieces: Iterator[str]) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except RuntimeError as error:  # the conversation is longer than the context, for instance
        print(f"onnxruntime-genai: {error}", end="", file=sys.stderr)
    print()


def main() -> None:
    arguments = parse_arguments()
    chat = Chat(arguments)
    if arguments.prompt is not None:
        show(chat.answer(arguments.prompt))
        return
    if chat.template_problem:
        print(f"This model continues what you write, every line anew: {chat.template_problem}")
    for question in questions():
        show(chat.answer(question))


if __name__ == "__main__":
    try:
        main()
    except fairy2i_runtime.Fairy2iRuntimeError as error:
        print(f"genai_chat.py: {error}", file=sys.stderr)
        sys.exit(2)
