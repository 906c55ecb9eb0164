"""Chat templates: a list of messages in, the text the model was trained on out.

Templates are Jinja programs that come with a model, so they run in Jinja's immutable sandbox, in a process with limits of time
and memory (:mod:`.sandbox`). The environment follows the conventions of Hugging Face transformers, for which all such templates
are written, and so does what a template gets to see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fairy2i_runtime.errors import ChatTemplateError, printable
from fairy2i_runtime.jsonfile import read_optional_json
from fairy2i_runtime.regular_file import read_regular
from fairy2i_runtime.text.sandbox import process
from fairy2i_runtime.text.sandbox.program import FAILURES, environment

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
_DEFAULT, _TOOL_USE = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same part of a message, the first is today's
_BARE: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}  # of subclasses
MOST_BYTES = 1 << 18  # of a template; the longest known ones have 20 KB
_MOST_TEMPLATES = 32  # in a folder


class ChatTemplate:
    """A chat template.

    Attributes:
        problem: why it cannot be used; None if it can, as far as is known: :meth:`check` looks closer. Only :meth:`load` makes
            such templates: a model whose template is damaged can do everything but chat.
    """

    problem: str | None = None

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        origin: str = "chat template",
        tool_use: str | None = None,
    ) -> None:
        """Parse a template; what is wrong with it beyond syntax shows when it runs.

        Args:
            source: the Jinja text.
            special_tokens: texts that templates refer to, such as ``bos_token``.
            origin: how to call the template in error messages.
            tool_use: another template, for conversations with tools.

        Raises:
            ChatTemplateError: if the template has a syntax error.
        """
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        self._source = source
        self._tool_use = tool_use
        self._compiled = False
        _check_syntax(source, origin)

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of a model folder, None if it has none.

        It is chat_template.jinja with the folder additional_chat_templates, where there is one of them, else the one in
        tokenizer_config.json. A template that is damaged or cannot be chosen has a :attr:`problem`.

        Raises:
            ModelFolderError: if tokenizer_config.json is damaged.
        """
        try:
            named, origin = _templates(folder)
            if not named:
                return None
            source = named.get(_DEFAULT, next(iter(named.values())) if len(named) == 1 else None)
            if source is None:
                raise ChatTemplateError(f"{origin}: none of the chat templates {sorted(named)} is called '{_DEFAULT}'")
            return cls(source, special_tokens, origin=origin, tool_use=named.get(_TOOL_USE))
        except ChatTemplateError as error:
            broken = cls("", special_tokens)
            broken.problem = str(error)
            return broken

    def check(self) -> None:
        """Raise ChatTemplateError if the template has a :attr:`problem`, or cannot be compiled; in its process, once."""
        if self.problem is not None:
            raise ChatTemplateError(self.problem)
        if not self._compiled:
            _run("compile", self._source, self._origin)
            self._compiled = True

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables that callers may give: those that the template asks for and nobody else sets.

        With a template for tools these are the names of both, and ``tools``, which chooses between them.
        """
        self.check()
        asked = set(_asked(self._source, self._origin))
        if self._tool_use is not None:
            asked |= {"tools", *_asked(self._tool_use, f"{self._origin}: {_TOOL_USE}")}
        return frozenset(asked - set(self.reserved))

    @property
    def reserved(self) -> dict[str, str]:
        """Names that are no variables for callers, and who sets them."""
        return {
            **dict.fromkeys(environment().globals, "the template language"),
            **dict.fromkeys(self._special_tokens, "the tokenizer"),
            **dict.fromkeys(("messages", "add_generation_prompt"), "the conversation"),
        }

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}`` in order. Values that are None count as missing.
            add_generation_prompt: end with the beginning of an answer.
            variables: further variables for the template, such as ``tools`` and ``documents``, lists of objects. As in
                transformers, names that the template does not ask for do nothing, and special tokens are replaced.

        Raises:
            ChatTemplateError: if the template is damaged, refuses the messages, fails, or takes too much time or memory.
        """
        self.check()
        names = {"tools": None, "documents": None, **self._special_tokens, **variables}
        for name in ("tools", "documents"):
            entries = names[name]
            if entries is not None and not (
                isinstance(entries, list | tuple) and all(isinstance(x, Mapping) for x in entries)
            ):
                raise ChatTemplateError(f"{self._origin}: {name}: expected a list of objects, got {entries!r:.80}")
        source, origin = self._source, self._origin
        if names["tools"] is not None and self._tool_use is not None:
            source, origin = self._tool_use, f"{self._origin}: {_TOOL_USE}"
            _check_syntax(source, origin)
        names = {name: _plain(value) for name, value in names.items()}
        names["messages"] = [_message(message) for message in messages]
        return str(_run("render", source, origin, {"add_generation_prompt": add_generation_prompt, **names}))


def _asked(source: str, origin: str) -> set[str]:
    """Names that a template uses and does not set itself, those of the template language among them."""
    _check_syntax(source, origin)
    return set(_run("variables", source, origin))


def _run(task: str, source: str, origin: str, values: Mapping[str, Any] | None = None) -> Any:
    try:
        return process.run(task, source, values)
    except (ValueError, process.TemplateLimitError, RecursionError, OSError) as error:
        raise ChatTemplateError(f"{origin}: {printable(str(error))}") from error


def _check_syntax(source: str, origin: str) -> None:
    """Parse a template, which neither computes nor compiles anything of it."""
    if len(source) > MOST_BYTES:
        raise ChatTemplateError(f"{origin}: expected a template of at most {MOST_BYTES:,} bytes, found {len(source):,}")
    try:
        environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        message = printable(str(error.message))
        raise ChatTemplateError(f"{origin}: syntax error in line {error.lineno}: {message}") from error
    except FAILURES as error:  # Python's own limits, such as those of nested expressions
        raise ChatTemplateError(f"{origin}: cannot be compiled: {printable(str(error) or type(error).__name__)}") from error


def _templates(folder: Path) -> tuple[dict[str, str], str]:
    """Templates by name and where they are from.

    Raises:
        ChatTemplateError: if there is something else than templates.
        ModelFolderError: if tokenizer_config.json is damaged.
    """
    path, more = folder / TEMPLATE_FILE, folder / TEMPLATE_FOLDER
    files = {_DEFAULT: path} if path.exists() else {}
    files |= {other.stem: other for other in sorted(more.glob("*.jinja"))[:_MOST_TEMPLATES]}
    if files:
        return {name: _text_of(file) for name, file in files.items()}, str(path if path.exists() else more)
    config = folder / CONFIG_FILE
    value, origin = read_optional_json(config).get("chat_template"), f"{config}: chat_template"
    if value is None:
        return {}, origin
    if isinstance(value, str):
        return {_DEFAULT: value}, origin
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if not isinstance(value, dict):
        raise ChatTemplateError(f"{origin}: expected a text or a list of named templates, got {type(value).__name__}")
    texts = {name: template for name, template in value.items() if isinstance(template, str)}
    if not texts or not isinstance(value.get(_DEFAULT, ""), str):
        raise ChatTemplateError(f"{origin}: expected templates by name, each a text, got {value!r:.80}")
    return texts, origin


def _text_of(path: Path) -> str:
    try:
        text = read_regular(path, MOST_BYTES, "a chat template").decode("utf-8")
    except OSError as error:
        raise ChatTemplateError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ChatTemplateError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it: without values that are None, and its reasoning under every name it has had."""
    plain = {str(key): _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Made anew of JSON's types: other objects have methods that the sandbox does not know, so only their type is named."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind, bare in _BARE.items():
        if isinstance(value, kind):
            return bare(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic's models
        return _plain(dump())
    return f"<{type(value).__name__}>"
