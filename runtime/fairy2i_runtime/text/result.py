"""What a generation gives back: the text, how it ended, how long it took."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

FinishReason = Literal["eos", "stop", "length", "context", "interrupted"]


@dataclass(frozen=True)
class Timings:
    """How long a generation took, without the time its consumer spent on the text.

    Attributes:
        prompt_tokens: tokens of the prompt that were run.
        cached_tokens: tokens of the prompt that were in the cache already.
        prompt_seconds: time from the call to the logits of the first new token.
        decode_tokens: tokens after the first one, each in a run of its own but for those that were accepted.
        decode_seconds: time of those, sampling and detokenizing included.
        drafted: tokens that were run ahead, by looking up how the text may go on.
        accepted: those of them that were right.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """0 if nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """0 if nothing was run."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0

    @property
    def tokens_per_run(self) -> float:
        """After the prompt; 1 without drafts, 0 if nothing was run."""
        return self.decode_tokens / (self.decode_tokens - self.accepted) if self.decode_tokens else 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Timings)))

    def __str__(self) -> str:
        cached = f" (+ {self.cached_tokens} cached)" if self.cached_tokens else ""
        ahead = (
            f"; looked up: {self.accepted} of {self.drafted} tokens were right, {self.tokens_per_run:.2f} tokens per run"
            if self.drafted
            else ""
        )
        return (
            f"prompt: {self.prompt_tokens} tokens{cached}, {self.prompt_tokens_per_second:.1f} tokens/s; "
            f"decode: {self.decode_tokens} tokens, {self.decode_tokens_per_second:.1f} tokens/s{ahead}"
        )


@dataclass(frozen=True)
class Result:
    """A generated text.

    Attributes:
        text: the text, without the prompt and without the stop string that ended it.
        token_ids: the tokens generated, without the end-of-text token; with those of the stop string.
        finish_reason: ``eos`` (end-of-text token), ``stop`` (stop string), ``length`` (max_new_tokens), ``context`` (the
            context is full) or ``interrupted`` (the stream was closed or cancelled).
        timings: how long it took.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    timings: Timings
