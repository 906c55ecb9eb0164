"""Blocks of tokens as torch data sets: stored and shuffled in whole, or made while training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset

from fairy2i_export.errors import OptionError
from fairy2i_export.source.text.text_files import unknown_warnings
from fairy2i_export.train.data.documents import Skipped, fingerprint, open_documents
from fairy2i_export.train.data.packing import Encoder
from fairy2i_export.train.recipe import Recipe
from fairy2i_runtime.regular_file import read_json_value

Item = dict[str, torch.Tensor]  # input_ids and labels, int64 [length]
_LOOKED_AT = 64  # blocks, for whether the tokenizer knows the text
Blocks = npt.NDArray[Any]  # token ids [blocks, length]


class ShuffledBlocks(Dataset[Item]):
    """``count`` items: all blocks in a shuffled order, then all of them in another one, and so on.

    The order depends on the seed and the position alone, not on processes or batch sizes, so that a run can be continued,
    with another number of processes too.
    """

    def __init__(self, blocks: Blocks, encoder: Encoder, count: int, seed: int) -> None:
        self.blocks, self.encoder, self.count, self.seed = blocks, encoder, count, seed
        self._round, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        number, place = divmod(index, len(self.blocks))
        if number != self._round:
            self._order = np.random.default_rng([self.seed, number]).permutation(len(self.blocks))
            self._round = number
        return as_item(self.blocks[self._order[place]], self.encoder)


class StreamedBlocks(IterableDataset[Item]):
    """Blocks made of documents while they are read; starts again, in another order, at the end of the documents.

    Attributes:
        skipped: rows without text in what was read of the first pass.
    """

    def __init__(self, recipe: Recipe, encoder: Encoder, length: int) -> None:
        self.recipe, self.encoder, self.length = recipe, encoder, length
        self.skipped = Skipped()

    def __iter__(self) -> Iterator[Item]:
        recipe = self.recipe
        documents = open_documents(recipe.data, recipe.field, recipe.separator)
        documents = documents.shuffle(seed=recipe.seed, buffer_size=recipe.shuffle_buffer)
        number, self.skipped = 0, Skipped()
        while True:
            documents.set_epoch(number)
            found = False
            texts = (self.skipped if number == 0 else Skipped()).documents(iter(documents))
            for block in self.encoder.blocks(texts, self.length):
                found = True
                yield as_item(block, self.encoder)
            if not found:
                raise too_short(recipe.data, 0, self.length)
            number += 1


def first_block(recipe: Recipe, encoder: Encoder, length: int) -> npt.NDArray[Any]:
    """The first block of streamed texts, in the order of the files: shows that they can be read.

    Raises:
        OptionError: unreadable texts, or fewer tokens than one block.
    """
    rows = iter(open_documents(recipe.data, recipe.field, recipe.separator))
    block = next(encoder.blocks(Skipped().documents(rows), length), None)
    if block is None:
        raise too_short(recipe.data, 0, length)
    return block


def as_item(block: npt.NDArray[Any], encoder: Encoder) -> Item:
    """Input ids and labels of one block."""
    return {
        "input_ids": torch.from_numpy(block.astype(np.int64)),
        "labels": torch.from_numpy(encoder.labels(block)),
    }


def too_short(names: tuple[str, ...], tokens: int, length: int) -> OptionError:
    """The error for texts without a single full block."""
    found = f"only {tokens:,} tokens" if tokens else "no text, or less than one block"
    return OptionError(
        f"{', '.join(names)}: {found} found, and a block has {length:,}: give more text or a smaller --block-length"
    )


def stored_blocks(
    directory: Path,
    kind: str,
    names: tuple[str, ...],
    recipe: Recipe,
    encoder: Encoder,
    length: int,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda tokens: None,
    warn: Callable[[str], object] = lambda text: None,
) -> Blocks:
    """Tokenize all documents into a file of blocks, or open the file of an earlier call with the same texts.

    Args:
        directory: where the file goes.
        kind: its name: ``train`` or ``eval``.
        names: the texts.
        recipe: for column and separator.
        encoder: the tokenizer.
        length: tokens per block.
        limit: stop after so many blocks.
        progress: called with the number of tokens of every block.
        warn: called with what speaks against the texts, one sentence each.

    Returns:
        Token ids, mapped from the file: uint16 or uint32 [blocks, length].

    Raises:
        OptionError: unreadable texts, or fewer tokens than one block.
    """
    dtype = np.dtype(np.uint16 if encoder.tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)
    key = {
        "texts": fingerprint(names),
        "options": [recipe.field, recipe.separator, encoder.eos, encoder.bos, encoder.bos_place, length, limit],
        "tokenizer": hashlib.sha256(encoder.tokenizer.to_str().encode()).hexdigest(),
    }
    data, header = directory / f"{kind}.bin", directory / f"{kind}.json"
    if header.is_file() and data.is_file():
        known = kept_json(header)
        if known.get("key") == key and data.stat().st_size == known["blocks"] * length * dtype.itemsize:
            for warning in known.get("warnings", ()):
                warn(warning)
            return _mapped(data, dtype, length)
    directory.mkdir(parents=True, exist_ok=True)
    partial = data.with_suffix(".partial")
    count, skipped, first = 0, Skipped(), []
    rows = iter(open_documents(names, recipe.field, recipe.separator))
    try:
        with partial.open("wb") as file:
            for block in encoder.blocks(skipped.documents(rows), length):
                file.write(block.astype(dtype).tobytes())
                count += 1
                if count <= _LOOKED_AT:
                    first += block.tolist()
                progress(length)
                if count == limit:
                    break
        if count == 0:
            rows = iter(open_documents(names, recipe.field, recipe.separator))
            raise too_short(names, sum(map(len, encoder.documents(Skipped().documents(rows)))), length)
        os.replace(partial, data)
        warnings = [*skipped.warnings, *unknown_warnings(encoder.tokenizer, first, f"the beginning of {', '.join(names)}")]
        partial.write_text(json.dumps({"key": key, "blocks": count, "warnings": warnings}), encoding="utf-8")
        os.replace(partial, header)
    finally:
        partial.unlink(missing_ok=True)
    for warning in warnings:
        warn(warning)
    return _mapped(data, dtype, length)


def _mapped(path: Path, dtype: np.dtype[Any], length: int) -> Blocks:
    return np.memmap(path, dtype, "r").reshape(-1, length)


def kept_json(path: Path) -> dict[str, Any]:
    """What an earlier run wrote down; empty where that cannot be read."""
    try:
        found = read_json_value(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
