"""The interactive part of ``fairy2i chat``."""

from __future__ import annotations

import sys
from contextlib import closing

from fairy2i_runtime.commands.terminal.interrupts import heeding_ctrl_c
from fairy2i_runtime.commands.terminal.line_editor import BLOCK, LineEditor
from fairy2i_runtime.commands.terminal.shown import shown
from fairy2i_runtime.errors import ContextError, OptionError, RunError
from fairy2i_runtime.text.conversation import Conversation
from fairy2i_runtime.text.options import GenerationChoices

HELP = f"""\
/reset  forget the conversation (the system message stays)
/exit   end; so does Ctrl-D
/help   this text
{BLOCK}     begins a text of several lines, which ends with another {BLOCK}; pasted lines are one text in most terminals
Ctrl-C stops an answer."""


def chat_loop(talk: Conversation, options: GenerationChoices, editor: LineEditor) -> None:
    """Read what a person says and print the answers, until /exit or the end of input."""
    _say("/help lists the commands")
    while (text := _next_text(editor)) is not None:
        command = text.strip()
        if not command:
            continue
        if command == "/exit":
            break
        if command == "/reset":
            talk.reset()
            _say("forgotten")
        elif command.startswith("/") and "\n" not in command:
            if command != "/help":
                _say(f"unknown command {command}")
            _say(HELP)
        else:
            _answer(talk, text, options)


def _answer(talk: Conversation, text: str, options: GenerationChoices) -> None:
    """Print an answer. What goes wrong in the middle of one ends its line first, and only a bug ends the program."""
    begun = False
    try:
        with closing(talk.stream(text, **options)) as stream, heeding_ctrl_c(stream.cancel):
            for piece in stream:
                begun = True
                print(shown(piece), end="", flush=True)
        reason = stream.result.finish_reason
        ending = {"context": "the context is full", "interrupted": "stopped"}.get(reason, "")
    except ContextError as error:
        _say(f"{error}; /reset begins anew")
        return
    except OptionError as error:  # of a template that makes no text of the messages
        _say(str(error))
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


def _next_text(editor: LineEditor) -> str | None:
    """What the user says, None at the end of input. Ctrl-C discards what was typed."""
    while True:
        try:
            return editor.read()
        except KeyboardInterrupt:
            print()
            _say("/exit or Ctrl-D ends the program")


def _say(text: str) -> None:
    """Print something that is not the model's: to standard error."""
    print(text, file=sys.stderr, flush=True)
