"""A conversation of several turns over one key-value cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Unpack

from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.errors import OptionError, check_text
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.generation import TextStream
from fairy2i_runtime.text.options import GenerationChoices, GenerationOptions
from fairy2i_runtime.text.result import Result
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

    Several threads may use one conversation, which has one turn at a time: :meth:`ask` waits until an answer that another
    thread asked for is complete, and a stream that is still open is ended by the next question, whoever asks it.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` in order; an answer cut short is kept as far as it came, one that failed
            is not, nor is its question.
        template_variables: variables for the chat template besides the messages.
    """

    def __init__(
        self, model: Speaker, system: str | None = None, *, template_variables: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a conversation; see :meth:`fairy2i_runtime.Model.conversation`."""
        self._model = model
        if model.chat_template is not None:
            model.chat_template.check()
        self._system = None if system is None else check_text("system", system)
        self.template_variables = checked_variables("template_variables", template_variables, model.chat_template)
        self._turn = threading.RLock()  # held while a question is put, and by ask() until it is answered
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
        with self._turn:
            self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def cancel(self) -> None:
        """Ask the answer that is being written to end early; returns at once. See :meth:`TextStream.cancel`.

        Has no effect where none is: who may come before an answer begins calls ``cancel`` of what :meth:`stream` returned.
        """
        if (stream := self._stream) is not None:
            stream.cancel()

    def ask(
        self, text: str, *, on_text: Callable[[str], object] | None = None, **options: Unpack[GenerationChoices]
    ) -> Result:
        """Say something and get the answer.

        Args:
            text: what the user says.
            on_text: called with every piece of the answer as soon as it is certain.
            **options: as for :meth:`fairy2i_runtime.Model.generate`.

        Raises:
            ContextError: if the conversation no longer fits; it is left as it was.
            ChatTemplateError: if the template refuses the messages.
            OptionError: if an option is unknown or out of range, or what the user says is no text.
            RunError: if onnxruntime gives up; the conversation is left as it was.
        """
        with self._turn:
            return self.stream(text, **options).run(on_text)

    def stream(self, text: str, **options: Unpack[GenerationChoices]) -> TextStream:
        """As :meth:`ask`, as an iterator of text pieces; the turn is recorded when it ends or is closed, not if it fails."""
        return self.stream_message({"role": "user", "content": check_text("text", text)}, **options)

    def stream_message(self, message: Mapping[str, Any], **options: Unpack[GenerationChoices]) -> TextStream:
        """As :meth:`stream`, for a message of any role. An earlier stream that is still open is closed."""
        with self._turn:
            if self._stream is not None:
                self._stream.close()  # it would go on in a cache that is no longer its own
            self._stream = self._answer_to(checked_message("message", message), GenerationOptions.of(**options))
            return self._stream

    def _answer_to(self, message: dict[str, Any], options: GenerationOptions) -> TextStream:
        model = self._model
        if model.chat_template is None:
            ids = model.tokenizer.encode(check_text("message: content", message.get("content")))
            detokenizer = StreamDecoder(model.tokenizer.decode, context=ids)
        else:
            messages = [checked_message(f"messages[{n}]", earlier) for n, earlier in enumerate(self.messages)]
            text = model.chat_template.render([*messages, message], **self.template_variables)
            ids = model.tokenizer.encode(text, add_special_tokens=False)
            detokenizer = StreamDecoder(model.tokenizer.decode)

        def record(result: Result) -> None:
            self.messages += [message, {"role": "assistant", "content": result.text}]
            model.record(result)

        return TextStream(model.decoder, self._cache, ids, options, detokenizer, model.eos_ids, record)


def checked_message(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a message, if it is one: it has a role, and a content, if any, that templates can write out.

    Raises:
        OptionError: if it is none.
    """
    if not isinstance(message, Mapping):
        raise OptionError(f'{name}: expected a mapping such as {{"role": "user", "content": ...}}, got {message!r:.80}')
    check_text(f"{name}: role", message.get("role"))
    content = message.get("content")
    if not isinstance(content, list | tuple | Mapping | None):  # parts, for templates that know them; none beside tool calls
        check_text(f"{name}: content", content)
    return dict(message)


def checked_variables(name: str, variables: Mapping[str, Any] | None, template: ChatTemplate | None) -> dict[str, Any]:
    """Variables for a template that knows them: another one is a mistake in its name, or meant for another model.

    Args:
        name: how to call them in error messages.
        variables: names and values; None = none.
        template: the model's chat template; None if it has none.

    Raises:
        ChatTemplateError: if the template is damaged.
        OptionError: if it does not know one, sets one itself, or a name is none.
    """
    if variables is None or (isinstance(variables, Mapping) and not variables):
        return {}
    if not isinstance(variables, Mapping) or not all(isinstance(variable, str) for variable in variables):
        raise OptionError(f"{name}: expected names and values, got {variables!r:.80}")
    if template is None:
        raise OptionError(f"{name}: the model has no chat template: there is nothing to give them to")
    known, reserved = template.variables, template.reserved
    for variable in sorted(set(variables) - known):
        taken = f"it takes: {', '.join(sorted(known)) or 'none'}"
        if variable in reserved:
            raise OptionError(
                f"{name}: {variable!r} is no variable of the chat template, {reserved[variable]} sets it; {taken}"
            )
        raise OptionError(f"{name}: the chat template knows no {variable!r}; {taken}")
    return dict(variables)
