"""The tokenizer of a model folder: text to token ids and back, and its special tokens.

``tokenizer.json`` decides how text becomes ids, the beginning-of-text token included (its post-processor adds it). The files
beside it name the special tokens, and may name tokens that it lacks (:mod:`.special_tokens`); folders that the exporter wrote
lack none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, OptionError, check_text
from fairy2i_runtime.jsonfile import read_optional_json
from fairy2i_runtime.text.special_tokens import (
    ADDED_FILE,
    CONFIG_FILE,
    MAP_FILE,
    TOKENIZER_FILE,
    TokenFiles,
    complete_tokenizer,
)
from fairy2i_runtime.text.tokenizer_file import TokenizerFileError, guarded, open_tokenizer


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        special_tokens: the text of the special tokens by role (``bos_token``, ``eos_token``, further names that end in
            ``_token``), as far as they are known.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str], name: str = TOKENIZER_FILE) -> None:
        self._backend = backend
        self._name = name
        self.special_tokens = special_tokens

    @classmethod
    def load(cls, folder: Path, rows: int | None = None) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Args:
            folder: the folder.
            rows: of the model's embedding, if known; tokens that only the files beside tokenizer.json name are left out if
                it has no row for them.

        Raises:
            ModelFolderError: if tokenizer.json is missing or damaged, or a configuration file is damaged.
        """
        path = folder / TOKENIZER_FILE
        if not path.exists():
            raise ModelFolderError(f"{path} is missing: copy it from the source checkpoint, or export the model again")
        files = TokenFiles(*(read_optional_json(folder / name) for name in (CONFIG_FILE, MAP_FILE, ADDED_FILE)))
        try:
            completed = complete_tokenizer(lambda: open_tokenizer(path), files, rows)
        except TokenizerFileError as error:
            raise ModelFolderError(f"{path}: {error}; restore it, or export the model again") from error
        except ValueError as error:
            raise ModelFolderError(f"{folder}: {error}; repair the file, or export the model again") from error
        count = completed.backend.get_vocab_size(with_added_tokens=True)
        if rows is not None and count > rows:
            message = f"{path}: has {count} tokens, but the model's embedding has {rows} rows: it belongs to another model"
            warnings.warn(message, Fairy2iWarning, stacklevel=2)
        return cls(completed.backend, completed.special_tokens, str(path))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-text token, if the configuration names one."""
        return self.token_id(self.special_tokens.get("eos_token", ""))

    def token_id(self, token: str) -> int | None:
        """Id of a token given by its text, or None."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text; special tokens spelled in it become those tokens.
            add_special_tokens: add what the tokenizer's post-processor adds (usually a beginning-of-text token). Texts made
                by a chat template have theirs already.

        Raises:
            ModelFolderError: if the tokenizer fails.
            OptionError: if it is no text, or holds what UTF-8 cannot express (lone surrogates).
        """
        checked = check_text("text", text)
        try:
            return list(guarded(self._backend.encode, checked, add_special_tokens=add_special_tokens).ids)
        except TokenizerFileError as error:
            raise ModelFolderError(f"{self._name}: {error}") from error

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; unfinished characters come out as U+FFFD, ids without a token as nothing.

        Raises:
            ModelFolderError: if the tokenizer fails.
            OptionError: if they are no token ids: negative, for instance.
        """
        try:
            return str(guarded(self._backend.decode, list(ids), skip_special_tokens=skip_special_tokens))
        except TokenizerFileError as error:
            raise ModelFolderError(f"{self._name}: {error}") from error
        except (TypeError, OverflowError) as error:
            raise OptionError(f"token ids: expected integers from 0 on, got {ids!r:.80}") from error


def text_frame(framed: Sequence[int], plain: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """What a post-processor puts before and after every text; None if it does more than that.

    Args:
        framed: token ids of a text.
        plain: of the same text without what the post-processor adds.
    """
    for start in range(len(framed) - len(plain) + 1):
        end = start + len(plain)
        if list(framed[start:end]) == list(plain):
            return list(framed[:start]), list(framed[end:])
    return None
