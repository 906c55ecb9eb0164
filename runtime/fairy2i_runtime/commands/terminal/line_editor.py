"""Lines that a person types: editing and history by readline, texts of several lines.

The readline of the standard library it is, not a package such as prompt_toolkit: nothing to install or to load on the small
devices that this is made for, and the keys are those of the user's shell (``~/.inputrc``). Where Python has no readline
(Windows) the terminal's own editing remains.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from fairy2i_runtime.commands.given_text import keep_undecodable_bytes, typed_line
from fairy2i_runtime.commands.terminal.history import History

BLOCK = '"""'


class LineEditor:
    """Reads what a person says from standard input, which may be a terminal, a file or a pipe."""

    def __init__(self, history: History | None) -> None:
        """Prepare the terminal, if it is one.

        Args:
            history: earlier lines to come back to; None = only those of this session.
        """
        keep_undecodable_bytes()
        self._terminal = sys.stdin.isatty()
        self._readline = _readline() if self._terminal and sys.stdout.isatty() else None
        self._history = history if self._readline is not None else None
        if self._readline is not None and self._history is not None:
            for text in self._history.read():
                self._readline.add_history(text)

    def read(self) -> str | None:
        """What is said next: a line, several that were pasted, or those between two ``\"\"\"``; None at the end of input.

        Raises:
            KeyboardInterrupt: at Ctrl-C; what was typed is discarded.
        """
        try:
            text = self._line("> ")
        except EOFError:
            return None
        if text.strip().startswith(BLOCK):
            text = self._block(text.strip()[len(BLOCK) :])
        self._remember(text)
        return text

    def _block(self, line: str) -> str:
        """The lines up to one that ends with ``\"\"\"``, or to the end of input."""
        lines = []
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            try:
                line = self._line("... ")
            except EOFError:
                break
        else:
            lines.append(line.rstrip()[: -len(BLOCK)])
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        if not self._terminal:
            return typed_line(input())
        if not sys.stdout.isatty():  # the answers go elsewhere: what is for the person goes to the terminal
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        return typed_line(input(prompt))

    def _remember(self, text: str) -> None:
        if self._readline is None or not text.strip():
            return
        self._readline.add_history(text)
        if self._history is not None:
            self._history.add(text)


def _readline() -> ModuleType | None:
    """The module, ready to be used by ``input()``; None where there is none."""
    try:
        import readline
    except ImportError:
        return None
    readline.set_auto_history(False)  # it would take the lines of a block one by one
    if "libedit" not in (readline.__doc__ or ""):  # which has another language, and no bracketed paste
        readline.parse_and_bind("tab: self-insert")  # file names are nothing to say
        if os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one text; Python turns it off
    return readline
