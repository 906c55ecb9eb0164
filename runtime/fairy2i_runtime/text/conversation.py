"""A conversation of several turns over one key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.generation import GenerationOptions, Result, TextStream
from fairy2i_runtime.text.streaming import StreamDecoder
from fairy2i_runtime.text.tokenizer import Tokenizer


class Speaker(Protocol):
    """What a conversation needs of a model; :class:`fairy2i_runtime.Model` is one."""

    @property
    def decoder(self) -> Decoder: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat_template(self) -> ChatTemplate | None: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...
    def record(self, result: Result) -> None:
        """Take note of a generation that was not in vain."""


class Conversation:
    """Messages so far and the cache of their tokens.

    At every turn the whole conversation is rendered and tokenized anew, exactly as a fresh start would, and the cache is
    kept up to the first token that differs; only what comes after it is run.

    A model without chat template (a base model) continues each text as it is, without memory of the earlier ones.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` in order; an answer cut short is kept as far as it came, one that failed
            is not, nor is its question.
    """

    def __init__(self, model: Speaker, system: str | None = None) -> None:
        """Begin a conversation; see :meth:`fairy2i_runtime.Model.conversation`."""
        self._model = model
        self._system = system
        if model.chat_template is not None:
            model.chat_template.check()
        self._cache = model.decoder.new_cache()
        self._stream: TextStream | None = None
        self.messages: list[dict[str, Any]] = []
        self.reset()

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template; without one it continues plain text."""
        return self._model.chat_template is not None

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache."""
        return list(self._cache.tokens)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def ask(self, text: str, *, on_text: Callable[[str], object] | None = None, **options: Any) -> Result:
        """Say something and get the answer.

        Args:
            text: what the user says.
            on_text: called with every piece of the answer as soon as it is certain.
            **options: as for :meth:`fairy2i_runtime.Model.generate`.

        Raises:
            ContextError: if the conversation no longer fits; it is left as it was.
            ChatTemplateError: if the template refuses the messages.
            OptionError: if an option is unknown or out of range.
            RunError: if onnxruntime gives up; the conversation is left as it was.
        """
        return self.stream(text, **options).run(on_text)

    def stream(self, text: str, **options: Any) -> TextStream:
        """As :meth:`ask`, as an iterator of text pieces; the turn is recorded when it ends or is closed, not if it fails."""
        return self.stream_message({"role": "user", "content": text}, **options)

    def stream_message(self, message: Mapping[str, Any], **options: Any) -> TextStream:
        """As :meth:`stream`, for a message of any role. An earlier stream that is still open is closed."""
        if self._stream is not None:
            self._stream.close()  # it would go on in a cache that is no longer its own
        model = self._model
        if model.chat_template is None:
            ids = model.tokenizer.encode(str(message["content"]))
            detokenizer = StreamDecoder(model.tokenizer.decode, context=ids)
        else:
            text = model.chat_template.render([*self.messages, message])
            ids = model.tokenizer.encode(text, add_special_tokens=False)
            detokenizer = StreamDecoder(model.tokenizer.decode)

        def record(result: Result) -> None:
            self.messages += [dict(message), {"role": "assistant", "content": result.text}]
            model.record(result)

        chosen = GenerationOptions.of(**options)
        self._stream = TextStream(model.decoder, self._cache, ids, chosen, detokenizer, model.eos_ids, record)
        return self._stream
