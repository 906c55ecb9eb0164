"""Turn a stream of tokens into a stream of text: whole characters only, and nothing that belongs to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "�"  # what tokenizers decode the bytes of an unfinished character to


class StreamDecoder:
    """Detokenizes one token at a time.

    A token may hold part of a character, and what it decodes to may depend on whether something stands before it (the space
    that many tokenizers strip from the beginning of a text). So every token is decoded together with a few before it, and
    text ending in an unfinished character is held back.

    The pieces put together equal ``decode`` of all the tokens, less the text of ``context``. The one exception: where a
    model spells complete characters in byte tokens and goes on with bytes that are no UTF-8, decoders take back the complete
    ones; text that was already given out stays.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        """Start a stream.

        Args:
            decode: token ids to text.
            context: tokens before the first one, the prompt: the stream continues its text. Without it the stream is a
                text of its own, whose leading space is stripped if the tokenizer does so.
        """
        self._decode = decode
        self._window = list(context)  # the tokens that are decoded together
        self._boundary = self._whole_characters(len(self._window))  # those before it are given out completely
        self._given = decode(self._window).rstrip(REPLACEMENT) if self._window else ""  # the text of the window given out

    def push(self, token: int) -> str:
        """Add a token and return the text that became certain, possibly none."""
        self._window.append(token)
        text = self._decode_window()
        certain = text.rstrip(REPLACEMENT)
        piece = certain[len(self._given) :]
        if certain == text:
            self._slide()
        else:
            self._given += piece
        return piece

    def finish(self) -> str:
        """End of the stream: what was held back. Unfinished characters come out as U+FFFD."""
        text = self._decode_window()
        piece = text[len(self._given) :]
        self._given += piece
        return piece

    def _decode_window(self) -> str:
        """The text of the window, which begins with what is given out already."""
        text = self._decode(self._window)
        if text.startswith(self._given):
            return text
        # invalid bytes made the decoder take back characters that are out already: go on after them
        self._window, self._given, self._boundary = self._window[self._boundary :], "", 0
        return self._decode(self._window)

    def _whole_characters(self, end: int) -> int:
        """The last position up to ``end`` where a character ends; a character has at most four bytes."""
        positions = range(end, max(end - 4, -1), -1)
        return next((at for at in positions if not self._decode(self._window[:at]).endswith(REPLACEMENT)), 0)

    def _slide(self) -> None:
        """All tokens are given out: keep only the last step's as context, if they stand for text at all."""
        context = self._window[self._boundary :]
        text = self._decode(context)
        if text:  # without text before it, the next token would lose its space
            self._window, self._given = context, text
        else:
            self._given = self._decode(self._window)
        self._boundary = len(self._window)


class StopMatcher:
    """Cuts a stream of text before the first stop string.

    The first is the one that is complete first; of several that end together, the longest. Text that may be the beginning of
    a stop string is held back until it is decided, so the outcome does not depend on how the text is cut into pieces.

    Attributes:
        found: the stop string that ended the text, or None so far.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text and return what can be given out; nothing more after a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            piece, self._held = self._held[:start], ""
            return piece
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        piece, self._held = self._held[:cut], self._held[cut:]
        return piece

    def finish(self) -> str:
        """End of the stream: the text that was held back and turned out to be no stop string."""
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop`` but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
