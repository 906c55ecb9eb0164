"""Tokens that are named beside tokenizer.json: in tokenizer_config.json, special_tokens_map.json and added_tokens.json.

transformers adds to a tokenizer what these files name and tokenizer.json lacks, and so does everything here: the exporter
before it writes the tokenizer.json of a folder, the runtime when it opens one. The rules are those of transformers 5:

* ``added_tokens_decoder`` in tokenizer_config.json stands for all three files. Only where it is missing do
  added_tokens.json and special_tokens_map.json count, and the latter overrules tokenizer_config.json.
* Then come the tokens with a role (``bos_token``, further names ending in ``_token``), then the list
  ``extra_special_tokens``, which was called ``additional_special_tokens``; as an object, its tokens have roles.
* A token of the vocabulary keeps its id; any other gets the next free one, whatever id the files give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from fairy2i_runtime.text.tokenizer_file import guarded

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FIELDS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DECODER, _EXTRA, _FORMER_EXTRA = "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"
_OWN_ROLES = "model_specific_special_tokens"
Token = str | tokenizers.AddedToken


@dataclass(frozen=True)
class TokenFiles:
    """Contents of the files, empty where there is none."""

    config: Mapping[str, Any] = field(default_factory=dict)
    special_map: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)

    @property
    def legacy_counts(self) -> bool:
        """Whether special_tokens_map.json and added_tokens.json have a say."""
        return _DECODER not in self.config


@dataclass(frozen=True)
class Completed:
    """A tokenizer with all of its tokens.

    Attributes:
        backend: of the tokenizers library.
        special_tokens: text of the tokens that have a role, by role.
        changed: whether tokenizer.json lacked one of them, or says something else about it.
        problems: what could not be done as the files say, a sentence each that names token and file.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    changed: bool
    problems: tuple[str, ...]


@dataclass
class _Named:
    """What the files name.

    Attributes:
        flags: tokens to add first, by the id they are given; tokenizer.json's own are among them where the older files count.
        ids: the id that a file gives to a token, by its text.
        ids_in: the place of these ids.
        roles: tokens by role.
        extra: further special tokens.
    """

    flags: dict[int, tokenizers.AddedToken] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    ids_in: str = ""
    roles: dict[str, Token] = field(default_factory=dict)
    extra: list[Token] = field(default_factory=list)

    def where(self, text: str, files: TokenFiles) -> str:
        """The place that names a token."""
        if text in self.ids:
            return self.ids_in
        read = {MAP_FILE: files.special_map if files.legacy_counts else {}, CONFIG_FILE: files.config}
        places = (
            f"{name}: {key}" for name, entries in read.items() for key, value in entries.items() if text in _texts(value)
        )
        return next(places, CONFIG_FILE)


def complete_tokenizer(
    open_backend: Callable[[], tokenizers.Tokenizer],
    files: TokenFiles,
    rows: int | None = None,
    left_out: frozenset[str] = frozenset(),
) -> Completed:
    """Add the tokens that the files name.

    Args:
        open_backend: makes the tokenizer of tokenizer.json; called again if tokens have to be left out.
        files: what lies beside it.
        rows: of the model's embedding, if known; new tokens with larger ids are left out.
        left_out: tokens that are not added.

    Raises:
        TokenizerFileError: if the tokenizer fails.
        ValueError: if a file holds something else than tokens where tokens are expected; names it.
    """
    backend = open_backend()
    before = _described(backend)
    named = _read(backend, files)
    wanted = [token for token in _to_add(backend, named) if token.content not in left_out]
    new = [token.content for token in wanted if backend.token_to_id(token.content) is None]
    guarded(backend.add_tokens, wanted)
    ids = {text: index for text in new if (index := backend.token_to_id(text)) is not None}
    beyond = {text: index for text, index in ids.items() if rows is not None and index >= rows}
    problems = [
        f"{named.where(text, files)} names the token {text!r}, which {TOKENIZER_FILE} lacks; its id would be {index}, but the "
        f"model's embedding has {rows} rows: it is left out, and in a text it is no token of its own"
        for text, index in beyond.items()
    ]
    if beyond:
        backend = open_backend()
        guarded(backend.add_tokens, [token for token in wanted if token.content not in beyond])
    for text, index in named.ids.items():
        found = backend.token_to_id(text)
        if text not in beyond and found is not None and found != index:
            problems.append(
                f"{named.ids_in} gives the token {text!r} the id {index}, but from {TOKENIZER_FILE} it gets {found}, which "
                f"counts, as in transformers; if the model was trained with the other id, repair {TOKENIZER_FILE}"
            )
    for text in new:
        found = backend.token_to_id(text)
        other = None if found is None else backend.model.id_to_token(found)
        if other is not None:
            problems.append(
                f"{named.where(text, files)} names the token {text!r}, which {TOKENIZER_FILE} lacks; it gets the id {found} of "
                f"the token {other!r}, as in transformers, because the vocabulary has gaps; repair {TOKENIZER_FILE}"
            )
    texts = {role: _text(token) for role, token in named.roles.items()}
    return Completed(backend, texts, _described(backend) != before, tuple(problems))


def _read(backend: tokenizers.Tokenizer, files: TokenFiles) -> _Named:
    settings = dict(files.config)
    if _FORMER_EXTRA in settings and not settings.get(_EXTRA):
        settings[_EXTRA] = settings.pop(_FORMER_EXTRA)
    own = {key: value for key, value in settings.items() if _is_own_role(key) and isinstance(value, str)}
    if isinstance(settings.get(_EXTRA), Mapping):
        own.update(settings.pop(_EXTRA))
    explicit = settings.pop(_OWN_ROLES, None)
    if not own and isinstance(explicit, Mapping):  # transformers overwrites it where there are others
        own.update(explicit)
    named = _Named()
    if files.legacy_counts:
        _merge_map(settings, own, files.special_map)
        by_text = _read_added_file(backend, files, settings, named)
    else:
        by_text = _read_decoder(settings[_DECODER], named)
    extra = settings.get(_EXTRA, settings.get(_FORMER_EXTRA))
    if isinstance(extra, Mapping):
        own.update(extra)
    for role in (*ROLES, *(key for key in settings if _is_own_role(key) and key not in own), *own):
        value = own.get(role, settings.get(role))
        if value is None or (role not in ROLES and role not in own and not _is_token(role, value, files)):
            continue
        token = _special(value, role)
        named.roles[role] = by_text.get(_text(token), token) if role in ROLES else token
    named.extra = [_special(value, _EXTRA) for value in _list(extra)]
    return named


def _list(found: Any) -> list[Any]:
    """The list of special tokens without a role; empty if they are an object, whose tokens have one."""
    if found is not None and not isinstance(found, list | Mapping):
        raise ValueError(f"{CONFIG_FILE}, {MAP_FILE}: {_EXTRA}: expected a list of tokens or an object, got {found!r:.80}")
    return found if isinstance(found, list) else []


def _read_decoder(entries: Any, named: _Named) -> dict[str, tokenizers.AddedToken]:
    """Tokens of ``added_tokens_decoder``, an object of tokens by id; returns them by text."""
    named.ids_in = f"{CONFIG_FILE}: {_DECODER}"
    if not isinstance(entries, Mapping):
        raise ValueError(f"{named.ids_in}: expected an object of tokens by id, got {type(entries).__name__}")
    for index, fields in entries.items():
        if not str(index).isdecimal() or not isinstance(fields, Mapping):
            raise ValueError(f"{named.ids_in}: expected an object of tokens by id, got {index!r}: {fields!r}")
        named.flags[int(index)] = _token(fields, named.ids_in)
    named.ids = {token.content: index for index, token in named.flags.items()}
    return {token.content: token for token in named.flags.values()}


def _read_added_file(
    backend: tokenizers.Tokenizer, files: TokenFiles, settings: Mapping[str, Any], named: _Named
) -> dict[str, tokenizers.AddedToken]:
    """Tokens of added_tokens.json, an object of ids by text, and of tokenizer.json, which overrule them; returns them by text."""
    named.ids_in = ADDED_FILE
    special = {
        _text(_special(value, name))
        for name in (*ROLES, _EXTRA)
        for value in (_list(settings.get(_EXTRA)) if name == _EXTRA else [settings.get(name)])
        if value is not None and not (isinstance(value, Mapping) and "__type" in value)  # these are not looked into
    }
    by_text = {}
    for text, index in files.added.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f"{ADDED_FILE}: expected a token id for {text!r}, got {index!r}")
        by_text[text] = tokenizers.AddedToken(text, normalized=text not in special, special=text in special)
        named.flags[index], named.ids[text] = by_text[text], index
    own = backend.get_added_tokens_decoder()
    named.flags.update(own)
    return {**by_text, **{token.content: token for token in own.values()}}


def _merge_map(settings: dict[str, Any], own: dict[str, Any], special_map: Mapping[str, Any]) -> None:
    """Let special_tokens_map.json overrule the settings of tokenizer_config.json."""
    for key, value in special_map.items():
        if key == _EXTRA and isinstance(value, Mapping):
            own.update(value)
        elif key == _EXTRA and isinstance(value, list):
            before = _list(settings.get(_EXTRA))
            settings[_EXTRA] = [*before, *(token for token in value if token not in before)]
        else:
            settings[key] = {**value, "special": True} if isinstance(value, Mapping) else value


def _to_add(backend: tokenizers.Tokenizer, named: _Named) -> list[tokenizers.AddedToken]:
    """Tokens in the order in which they are added; the library passes over those that are there with the same flags."""
    with_role = {_text(token) for token in named.roles.values()}
    known = {token.content for token in (*backend.get_added_tokens_decoder().values(), *named.flags.values())}
    found: list[Token] = [token for _, token in sorted(named.flags.items())]
    for token in (*named.roles.values(), *named.extra):
        if _text(token) not in (*known, "") and token not in found:  # twice with different flags: the later ones count
            found.append(token)
    tokens = [tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token for token in found]
    for token in tokens:
        token.special = token.special or token.content in with_role
    return tokens


def _token(value: Any, origin: str) -> Any:
    """A text as it is; an object as an AddedToken."""
    if isinstance(value, str | tokenizers.AddedToken):
        return value
    flags = {key: value[key] for key in _FIELDS if key in value} if isinstance(value, Mapping) else {}
    text = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(text, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"{origin}: expected a token, a text or an object with a content, got {value!r}")
    return tokenizers.AddedToken(text, **flags)


def _special(value: Any, name: str) -> Token:
    """A token that is special unless its object says something else."""
    is_typed = not isinstance(value, Mapping) or "__type" in value
    found: Token = _token(value if is_typed else {"special": True, **value}, f"{CONFIG_FILE}, {MAP_FILE}: {name}")
    return found


def _text(token: Token) -> str:
    return token if isinstance(token, str) else str(token.content)


def _texts(value: Any) -> list[Any]:
    """What an entry may name: itself, or what is in it."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else [value]


def _is_own_role(key: str) -> bool:
    return key.endswith("_token") and key not in ROLES


def _is_token(role: str, value: Any, files: TokenFiles) -> bool:
    """Whether an entry outside the usual roles is a token: in tokenizer_config.json an object has to say so."""
    if isinstance(value, Mapping):
        return "__type" in value or (files.legacy_counts and role in files.special_map)
    return isinstance(value, str)


def _described(backend: tokenizers.Tokenizer) -> dict[int, str]:
    return {index: repr(token) for index, token in backend.get_added_tokens_decoder().items()}
