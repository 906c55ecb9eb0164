"""A short English text, for what has to see a model at work: verification, and the scales of an int8 cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy2i_export.source.text.text_files import unknown_token

if TYPE_CHECKING:  # the text alone needs no numpy, and --help of a command none at all
    import numpy as np
    import numpy.typing as npt

DEFAULT_TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. One day, she "
    "saw a big red ball under a tree. She wanted to play with it, but a bird sat on it and did not want to move. Lily asked "
    "the bird to share, and the bird was happy to help. They played until the sun went down, and then they went home. Her mom "
    "was glad to see them and gave them a warm dinner. From that day on they met in the park every morning and became friends."
)

_UNKNOWN_LIMIT = 1 / 3  # of a text's tokens: with more unknown ones it shows little of a model
_SEED = 20


def sample_ids(tokenizer_file: Path, ids: Sequence[int], count: int) -> tuple[npt.NDArray[np.int64], bool]:
    """Token ids [length], at most ``count``, to run a model on: of a text, or random ones if its tokenizer does not know it.

    Args:
        tokenizer_file: the tokenizer.json.
        ids: what it makes of the text.
        count: how many there may be.

    Returns:
        The ids, and whether they are those of the text.
    """
    import numpy as np

    if len(ids) > 1 and not mostly_unknown(tokenizer_file, ids[:count]):
        return np.array(ids[:count], np.int64), True
    return random_ids(tokenizer_file, ids, count), False


def mostly_unknown(tokenizer_file: Path, ids: Sequence[int]) -> bool:
    """Whether a tokenizer does not know much of the text that became these ids."""
    tokenizer = _open(tokenizer_file)
    special = set(_special(tokenizer)) - {unknown_token(tokenizer)}
    words = [token for token in ids if token not in special]
    return sum(token == unknown_token(tokenizer) for token in words) > _UNKNOWN_LIMIT * len(words)


def random_ids(tokenizer_file: Path, ids: Sequence[int], count: int) -> npt.NDArray[np.int64]:
    """Random ordinary tokens, the same ones every time, in the place of a text that a tokenizer does not know.

    Args:
        tokenizer_file: the tokenizer.json.
        ids: of the text; special tokens that it begins with are kept.
        count: how many there shall be.
    """
    import numpy as np

    tokenizer = _open(tokenizer_file)
    special = {*_special(tokenizer), unknown_token(tokenizer)}
    ordinary = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)
    first = list(ids[:1]) if ids and ids[0] in special - {unknown_token(tokenizer)} else []
    rest = np.random.default_rng(_SEED).choice(ordinary or sorted(special), count - len(first))
    return np.array([*first, *rest], np.int64)


def _open(tokenizer_file: Path) -> Any:
    from fairy2i_runtime.text.tokenizer_file import open_tokenizer

    return open_tokenizer(tokenizer_file)


def _special(tokenizer: Any) -> list[int]:
    return [int(number) for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
