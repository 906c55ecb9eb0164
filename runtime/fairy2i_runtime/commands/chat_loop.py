"""The interactive part of ``fairy2i chat``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from fairy2i_runtime.errors import ContextError, RunError
from fairy2i_runtime.model import Model
from fairy2i_runtime.text.conversation import Conversation

HELP = """\
/reset  forget the conversation (the system message stays)
/exit   end; so does Ctrl-D
/help   this text
Ctrl-C stops an answer."""


def chat_loop(model: Model, system: str | None, options: Mapping[str, Any]) -> None:
    """Read lines from standard input, print the answers, until /exit or the end of input; then tokens per second."""
    talk = model.conversation(system)
    if not talk.is_chat:
        _say("this model has no chat template: every line is continued as plain text, without memory of earlier ones")
        if system is not None:
            _say("a system message needs a chat template: it is ignored")
    _say("/help lists the commands")
    while (line := _read_line()) is not None:
        command = line.strip()
        if not command:
            continue
        if command == "/exit":
            break
        if command == "/reset":
            talk.reset()
            _say("forgotten")
        elif command.startswith("/"):
            if command != "/help":
                _say(f"unknown command {command}")
            _say(HELP)
        else:
            _answer(talk, line, options)
    _say(str(model.stats))


def _answer(talk: Conversation, text: str, options: Mapping[str, Any]) -> None:
    """Print an answer. What goes wrong in the middle of one ends its line first, and only a bug ends the program."""
    begun = False
    try:
        with closing(talk.stream(text, **options)) as stream:
            for piece in stream:
                begun = True
                print(piece, end="", flush=True)
        ending = "" if stream.result.finish_reason != "context" else "the context is full"
    except ContextError as error:
        _say(f"{error}; /reset begins anew")
        return
    except KeyboardInterrupt:
        ending = "stopped"
    except Exception as error:
        if begun:
            print(flush=True)
        if not isinstance(error, RunError):
            raise
        _say(f"{error}; the question and what there is of the answer are not remembered: ask again, or /reset begins anew")
        return
    print(flush=True)
    if ending:
        _say(ending)


def _read_line() -> str | None:
    """A line from the user, None at the end of input. Ctrl-C discards what was typed."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()
            _say("/exit or Ctrl-D ends the program")


def _say(text: str) -> None:
    """Print something that is not the model's: to standard error."""
    print(text, file=sys.stderr, flush=True)
