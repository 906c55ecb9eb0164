"""Chat templates: a list of messages in, the text the model was trained on out.

Templates are Jinja programs that come with a model, so they run in Jinja's immutable sandbox. The environment follows the
conventions of Hugging Face transformers, for which all such templates are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from fairy2i_runtime.errors import ChatTemplateError, ModelFolderError
from fairy2i_runtime.jsonfile import read_optional_json

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, origin: str = "chat template") -> None:
        """Compile a template.

        Args:
            source: the Jinja text.
            special_tokens: texts that templates refer to, such as ``bos_token``.
            origin: how to call the template in error messages.

        Raises:
            ChatTemplateError: if the template has a syntax error.
        """
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        self._source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"{origin}: syntax error in line {error.lineno}: {error.message}") from error

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of a model folder: chat_template.jinja, else the one in tokenizer_config.json, else None.

        Raises:
            ModelFolderError: if a file is damaged.
            ChatTemplateError: if the template has a syntax error.
        """
        path = folder / TEMPLATE_FILE
        if path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), special_tokens, origin=str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise ModelFolderError(f"cannot read {path} as UTF-8 text: {error}") from error
        path = folder / CONFIG_FILE
        source = _default_template(read_optional_json(path).get("chat_template"), path)
        return None if source is None else cls(source, special_tokens, origin=f"{path}: chat_template")

    @property
    def variables(self) -> frozenset[str]:
        """Names of the variables that callers may give to :meth:`render`: those that the template asks for."""
        environment = _environment()
        asked = meta.find_undeclared_variables(environment.parse(self._source))
        return frozenset(asked - set(environment.globals) - {"messages", "add_generation_prompt"})

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}`` in order.
            add_generation_prompt: end with the beginning of an answer.
            variables: further variables for the template.

        Raises:
            ChatTemplateError: if the template refuses the messages or fails.
        """
        names = {"tools": None, "documents": None, **self._special_tokens, **variables}
        names["messages"] = [dict(message) for message in messages]
        try:
            return self._template.render(add_generation_prompt=add_generation_prompt, **names)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ChatTemplateError(f"{self._origin}: {error}") from error


def _default_template(value: object, path: Path) -> str | None:
    """The template to chat with: the only one, or of several named ones the one called ``default``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        named = {entry.get("name"): entry.get("template") for entry in value}
        chosen = named.get("default", next(iter(named.values()), None) if len(named) == 1 else None)
        if isinstance(chosen, str):
            return chosen
        raise ModelFolderError(f"{path}: none of the chat templates {sorted(map(str, named))} is called 'default'")
    raise ModelFolderError(
        f"{path}: chat_template: expected a text or a list of named templates, got {type(value).__name__}"
    )


class _GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what a model is trained on; rendering shows the inside."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PublicNamespace(Namespace):
    """Jinja's ``namespace()``, which lets templates store attributes, without underscore names."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"chat templates cannot store the attribute {name!r} in a namespace")
        super().__setitem__(name, value)


def _namespace(*mappings: Any, **values: Any) -> Namespace:
    namespace = _PublicNamespace()
    for name, value in dict(*mappings, **values).items():
        namespace[name] = value
    return namespace


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _namespace
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
