"""Documents to aligned blocks of token ids, and labels that leave out what cannot be predicted.

As in the published training: no beginning-of-text tokens, every document ends with the end-of-text token, documents follow
each other without padding, blocks are cut wherever they are full, and the token after an end-of-text token, which belongs to
another document, is not predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import OptionError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.text.tokenizer import TOKENIZER, open_tokenizer
from fairy2i_export.source.text.tokenizer_files import special_tokens
from fairy2i_export.train.recipe import Bos

IGNORED = -100  # label of a token that is not predicted, as transformers has it
_BATCH = 256  # documents tokenized together
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Encoder:
    """Tokenizer and the tokens around documents.

    Attributes:
        tokenizer: of the ``tokenizers`` library.
        eos: id that ends every document.
        bos: id that begins documents or blocks; None if the recipe wants none.
        bos_place: where.
    """

    tokenizer: Any
    eos: int
    bos: int | None
    bos_place: Bos

    def documents(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Token ids of each document, with what stands around it."""
        begin = [self.bos] if self.bos is not None and self.bos_place == "document" else []
        texts = iter(texts)
        while batch := list(islice(texts, _BATCH)):
            for encoding in self.tokenizer.encode_batch(batch, add_special_tokens=False):
                if encoding.ids:
                    yield [*begin, *encoding.ids, self.eos]

    def blocks(self, texts: Iterable[str], length: int) -> Iterator[I32]:
        """Blocks of ``length`` token ids each, int32 [length]; what is left at the end is dropped."""
        begin = [self.bos] if self.bos is not None and self.bos_place == "block" else []
        body, buffer = length - len(begin), []
        for ids in self.documents(texts):
            buffer += ids
            full = len(buffer) // body * body
            for start in range(0, full, body):
                yield np.asarray(begin + buffer[start : start + body], np.int32)
            del buffer[:full]

    def labels(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Labels of a block, int64 of the same shape; position i holds what is predicted from the tokens before it."""
        labels = ids.astype(np.int64)
        labels[..., 1:][ids[..., :-1] == self.eos] = IGNORED
        labels[..., 0] = IGNORED  # nothing predicts the first token
        if self.bos is not None:
            labels[ids == self.bos] = IGNORED
        return labels


def open_encoder(checkpoint: Checkpoint, vocab_size: int, bos: Bos, eos: str | None) -> Encoder:
    """The encoder of a checkpoint's tokenizer.

    Args:
        checkpoint: the opened source.
        vocab_size: rows of the model's embedding.
        bos: where beginning-of-text tokens go.
        eos: the end-of-text token by id or by its text; None: what the checkpoint names first.

    Raises:
        CheckpointError: no tokenizer.json, or one with ids that the embedding has no row for.
        OptionError: a token that is needed is unknown.
    """
    tokenizer = open_tokenizer(checkpoint.directory, vocab_size)
    special = special_tokens(checkpoint, tokenizer, vocab_size)
    begin = special.bos if bos != "none" else None
    if bos != "none" and begin is None:
        raise OptionError(f"--bos {bos}: {checkpoint.directory} names no beginning-of-text token; use --bos none")
    return Encoder(tokenizer.backend, _end_token(eos, tokenizer.vocabulary, special.eos, checkpoint), begin, bos)


def _end_token(eos: str | None, vocabulary: dict[str, int], named: tuple[int, ...], checkpoint: Checkpoint) -> int:
    if eos is None:
        if not named:
            raise OptionError(
                f"{checkpoint.directory} names no end-of-text token (eos_token_id in config.json); name one with --eos"
            )
        return named[0]
    if eos in vocabulary:
        return vocabulary[eos]
    if eos.isdigit() and int(eos) in vocabulary.values():
        return int(eos)
    raise OptionError(
        f"--eos {eos}: expected a token or a token id of {checkpoint.directory / TOKENIZER}, which has neither"
    )
