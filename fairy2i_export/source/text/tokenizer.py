"""The tokenizer of a checkpoint, with all of its tokens: whatever the exporter does with text or ids reads it here.

The files beside tokenizer.json may name tokens that it lacks. transformers adds them, other hosts read tokenizer.json alone; so
the tokenizer.json that the exporter writes has them (:mod:`fairy2i_runtime.text.special_tokens` has the rules).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.checkpoint import read_json
from fairy2i_export.source.files import read_file
from fairy2i_export.source.text.tokenizer_class import class_warning
from fairy2i_runtime.regular_file import parse_json

if TYPE_CHECKING:
    import tokenizers

    from fairy2i_runtime.text.special_tokens import Completed

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SMALL = 0.5  # of the embedding's rows: a tokenizer with fewer tokens is hardly the model's own


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer with all of its tokens.

    Attributes:
        backend: of the tokenizers library; it neither cuts texts nor fills them up.
        special_tokens: text of the special tokens by role, such as ``eos_token``.
        text: the contents that tokenizer.json should have; None if it has them.
        warnings: what the files say and cannot be done, a sentence each.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    text: str | None
    warnings: tuple[str, ...]

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        return dict(self.backend.get_vocab(with_added_tokens=True))


def open_tokenizer(directory: Path, rows: int | None = None) -> SourceTokenizer:
    """Read tokenizer.json and the files beside it.

    Args:
        directory: the checkpoint, or any folder with a tokenizer.json.
        rows: of the model's embedding; None: what config.json says, if there is one.

    Raises:
        CheckpointError: tokenizer.json is missing or no tokenizer, has tokens in its vocabulary that the embedding has no row
            for, or a file beside it is damaged.
    """
    from fairy2i_runtime.text import tokenizer_file
    from fairy2i_runtime.text.special_tokens import TokenFiles, complete_tokenizer

    path = directory / TOKENIZER
    data = _read(path, directory)
    backend = _parse(path)
    if rows is None:
        config = _optional(directory / "config.json")
        text_config = config.get("text_config")  # of a model that reads more than text
        found = (text_config if isinstance(text_config, dict) else config).get("vocab_size")
        rows = found if isinstance(found, int) and not isinstance(found, bool) else None
    beyond = _check_vocabulary(path, backend, rows)
    warnings = [
        f"{path}: the added token {token!r} has the id {index}, but the model's embedding has {rows} rows: it is left out, and "
        "in a text it is no token of its own"
        for token, index in beyond.items()
    ]
    own = [token for token in data.get("added_tokens") or [] if token["content"] not in beyond]
    moved = {token["content"]: token["id"] for token in own if backend.token_to_id(token["content"]) != token["id"]}
    warnings += [
        f"{path}: gives the added token {token!r} the id {index}, but added tokens follow each other, and it gets "
        f"{backend.token_to_id(token)}, as in transformers; if the model was trained with the other id, repair the file"
        for token, index in moved.items()
    ]
    special_map, added = _optional(directory / SPECIAL_MAP, warnings), _optional(directory / ADDED_TOKENS, warnings)
    files = TokenFiles(_optional(directory / TOKENIZER_CONFIG), special_map, added)

    def reopen() -> tokenizers.Tokenizer:
        return _parse(path, json.dumps({**data, "added_tokens": own}) if beyond else None)

    try:
        completed = complete_tokenizer(reopen, files, rows, frozenset(beyond))
    except tokenizer_file.TokenizerFileError as error:
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error})") from error
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}; repair the file") from error
    backend = completed.backend
    _check_frame(path, backend, rows)
    warnings += [f"{directory}: {problem}" for problem in completed.problems]
    warnings += _other_warnings(directory, files.config, completed, rows)
    if (problem := class_warning(files.config, data)) is not None:
        warnings.append(f"{directory / TOKENIZER_CONFIG}: {problem}")
    text = None
    if completed.changed or beyond or moved:
        text = json.dumps({**data, "added_tokens": _added_tokens(backend)}, ensure_ascii=False, indent=2) + "\n"
    return SourceTokenizer(backend, completed.special_tokens, text, tuple(warnings))


def damaged_files(directory: Path) -> frozenset[str]:
    """Names of the files with special tokens that cannot be read and that no host should stumble over."""
    names = set()
    for name in (SPECIAL_MAP, ADDED_TOKENS):
        warnings: list[str] = []
        _optional(directory / name, warnings)
        if warnings:
            names.add(name)
    return frozenset(names)


def _read(path: Path, directory: Path) -> dict[str, Any]:
    if not path.exists():
        others = [name for name in _SLOW if (directory / name).is_file()]
        raise CheckpointError(
            f"{path}: missing; the exported model needs it. Make it from the checkpoint's other tokenizer files "
            f"({', '.join(others) or 'of which there are none here: copy them from where the model came from'}) with "
            f'transformers: AutoTokenizer.from_pretrained("{directory}").save_pretrained("{directory}")'
        )
    try:
        data = parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: cannot be read as a tokenizer (expected an object, got {type(data).__name__})")
    return data


def _parse(path: Path, text: str | None = None) -> tokenizers.Tokenizer:
    from fairy2i_runtime.text import tokenizer_file

    try:
        return tokenizer_file.open_tokenizer(path) if text is None else tokenizer_file.parse_tokenizer(text.encode())
    except tokenizer_file.TokenizerFileError as error:
        raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error})") from error


def _optional(path: Path, warnings: list[str] | None = None) -> dict[str, Any]:
    """A file's object; empty if there is none, or, where warnings are given, if it is damaged, which they say then."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except CheckpointError as error:
        if warnings is None:
            raise
        warnings.append(f"{error}: the tokens that it names are not known, and the file is left out")
        return {}


def _check_vocabulary(path: Path, backend: tokenizers.Tokenizer, rows: int | None) -> dict[str, int]:
    """Added tokens with ids beyond the embedding; the vocabulary itself must not have any."""
    if rows is None:
        return {}
    beyond = {token: index for token, index in backend.get_vocab(with_added_tokens=True).items() if index >= rows}
    own = {token: index for token, index in beyond.items() if backend.model.token_to_id(token) is not None}
    if own:
        last = max(own, key=own.__getitem__)
        raise CheckpointError(
            f"{path}: has token ids up to {own[last]}, the last is {last!r}, but the model's vocabulary (vocab_size in "
            f"config.json) has {rows}; the tokenizer belongs to another model"
        )
    return dict(sorted(beyond.items(), key=lambda item: item[1]))


def _check_frame(path: Path, backend: tokenizers.Tokenizer, rows: int | None) -> None:
    """What the post-processor puts around every text must be tokens of the model."""
    for index in backend.encode("").ids:
        if rows is not None and index >= rows:
            raise CheckpointError(
                f"{path}: its post_processor puts the token id {index} around every text, but the model's vocabulary "
                f"(vocab_size in config.json) has {rows}; the tokenizer belongs to another model"
            )


def _other_warnings(directory: Path, config: Mapping[str, Any], completed: Completed, rows: int | None) -> list[str]:
    backend, found = completed.backend, []
    frame = backend.encode("").ids
    for kind in ("bos", "eos"):
        wanted, text = config.get(f"add_{kind}_token"), completed.special_tokens.get(f"{kind}_token")
        does = text is not None and backend.token_to_id(text) in frame
        if isinstance(wanted, bool) and text is not None and wanted != does:
            found.append(
                f"{directory / TOKENIZER_CONFIG}: add_{kind}_token is {str(wanted).lower()}, but the post_processor of "
                f"{TOKENIZER} adds {'' if does else 'no '}{text!r}, which counts, as in transformers; if that is wrong, "
                f"repair {TOKENIZER}"
            )
    count = backend.get_vocab_size(with_added_tokens=True)
    if rows is not None and count < _SMALL * rows:
        found.append(
            f"{directory / TOKENIZER}: has {count} tokens, the model's embedding {rows} rows; is it the model's own tokenizer?"
        )
    if config.get("split_special_tokens") is True:
        found.append(
            f"{directory / TOKENIZER_CONFIG}: split_special_tokens is not done: special tokens in a text become those tokens"
        )
    return found


def _added_tokens(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """As tokenizer.json lists them."""
    return [
        {"id": index, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for index, token in sorted(backend.get_added_tokens_decoder().items())
    ]
