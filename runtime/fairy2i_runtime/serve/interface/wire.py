"""Answers in the form that clients of OpenAI's interface expect, whole or as a stream of events."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from fairy2i_runtime.serve.interface.errors import ApiError
from fairy2i_runtime.text.result import Result

_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
DONE = b"data: [DONE]\n\n"


class Form:
    """The shape of one answer.

    Attributes:
        chat: whether it answers messages or continues a text.
    """

    def __init__(self, chat: bool, model: str, *, with_usage: bool = False) -> None:
        """``with_usage``: streams end with a count of tokens."""
        self.chat, self._with_usage = chat, with_usage
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, result: Result, prompt_tokens: int) -> dict[str, Any]:
        """The answer as one object."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {
            **self._head,
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": [_choice(content, _REASONS[result.finish_reason])],
            "usage": usage(result, prompt_tokens),
        }

    def first(self) -> bytes:
        """What comes before the text; nothing where a text is continued."""
        return self._event(_choice({"delta": {"role": "assistant", "content": ""}}, None)) if self.chat else b""

    def piece(self, text: str) -> bytes:
        return self._event(_choice({"delta": {"content": text}} if self.chat else {"text": text}, None))

    def last(self, result: Result, prompt_tokens: int) -> bytes:
        """Why it ended, what it took if that was asked for, and the end of the stream."""
        events = self._event(_choice({"delta": {}} if self.chat else {"text": ""}, _REASONS[result.finish_reason]))
        if self._with_usage:
            events += self._event(None, usage(result, prompt_tokens))
        return events + DONE

    def _event(self, choice: dict[str, Any] | None, used: dict[str, Any] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        chunk = {**self._head, "object": kind, "choices": [] if choice is None else [choice]}
        return event({**chunk, "usage": used} if self._with_usage else chunk)


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def failure(error: ApiError) -> bytes:
    """The event of an answer that fails when some of it is out already; it is the last one."""
    return event(error.body)


def usage(result: Result, prompt_tokens: int) -> dict[str, Any]:
    """What an answer took, in tokens; those of the prompt that were found in a kept cache are among the others."""
    written = len(result.token_ids)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": result.timings.cached_tokens},
    }


def model_entry(name: str, created: int) -> dict[str, Any]:
    """A model as /v1/models lists it; ``created`` is the time of its file, in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "fairy2i"}


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
