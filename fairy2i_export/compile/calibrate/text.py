"""The text that a model is calibrated with: files, cut into windows of tokens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.errors import OptionError, install_hint
from fairy2i_export.request.request import CALIBRATION_TOKENS, Request
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.text.text_files import read_text, unknown_warnings
from fairy2i_export.source.text.tokenizer import open_tokenizer
from fairy2i_runtime.text.tokenizer import text_frame

METHOD = "annealing-4"  # a name for everything that codes depend on beside weights and text: other codes, other name
WINDOW = 512  # tokens that are read together
_FEWEST_WINDOWS = 2
_GOOD = "some ten thousand tokens of the kind of text that the model is for are good"


@dataclass(frozen=True)
class CalibrationText:
    """Token ids to calibrate with.

    Attributes:
        ids: int64 [windows, tokens of a window].
        sha256: of them and of the shape, in hex.
        warnings: what speaks against this text, one sentence each.
    """

    ids: npt.NDArray[np.int64]
    sha256: str
    warnings: tuple[str, ...] = ()

    def description(self, without: Sequence[str]) -> str:
        """For the metadata of a model, JSON: method, what was left out, whether norms are tuned, hash and size of the text."""
        return json.dumps({**self.facts(without), "tuned": "tuning" not in without})

    def facts(self, without: Sequence[str]) -> dict[str, Any]:
        """The same but for the norms, for :func:`json.dumps`."""
        left_out = {"without": list(without)} if without else {}
        return {"method": METHOD, **left_out, "text_sha256": self.sha256, "tokens": self.ids.size}


def check_torch() -> None:
    """Raise OptionError unless torch and transformers can be imported."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"calibrate: needs {' and '.join(missing)}, which cannot be imported; {install_hint('train')}")


def asked_text(checkpoint: Checkpoint, request: Request, longest: int) -> CalibrationText | None:
    """What a request says to calibrate with, or None.

    Args:
        checkpoint: whose tokenizer counts.
        request: what the caller asked for.
        longest: context length of the model.

    Raises:
        Fairy2iError: as for :func:`read_texts`, or options of a calibration without a text.
    """
    if request.calibrate:
        check_torch()
        normal = CALIBRATION_TOKENS["normal"]
        usual = CALIBRATION_TOKENS.get(request.asked["calibrate_effort"] or "normal", normal)
        tokens = usual if request.calibrate_tokens is None else request.calibrate_tokens
        return read_texts(checkpoint, request.calibrate, tokens, longest)
    if request.calibrate_tokens is not None:
        raise OptionError("calibrate tokens: there is no text; add --calibrate TEXT")
    if request.calibrate_without:
        raise OptionError("calibrate without: there is nothing to leave a step out of; add --calibrate TEXT")
    if request.asked["calibrate_effort"] is not None:
        raise OptionError("calibrate effort: nothing is calibrated; add --calibrate TEXT")
    return None


def read_texts(checkpoint: Checkpoint, paths: Sequence[str | Path], tokens: int, longest: int) -> CalibrationText:
    """Read text files and cut them into windows, evenly spread if there is more text than asked for.

    Several files share the tokens equally; what one is too short for goes to the others. Windows of a plain text begin as the
    tokenizer lets texts begin: most models know no text without their beginning-of-text token, and compute other things
    without it. A text with special tokens of its own, such as conversations, is taken as it is.

    Args:
        checkpoint: whose tokenizer counts.
        paths: UTF-8 text files.
        tokens: to use at most.
        longest: context length of the model; windows are not longer.

    Raises:
        OptionError: a file that cannot be read as text, or too little text.
        CheckpointError: the checkpoint has no tokenizer, or a damaged one.
    """
    window = min(WINDOW, longest)
    fewest = _FEWEST_WINDOWS * window
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < fewest:
        raise OptionError(
            f"calibrate tokens: expected at least {fewest} ({_FEWEST_WINDOWS} windows of {window}), got {tokens!r}"
        )
    needed = f"at least {fewest} tokens in {_FEWEST_WINDOWS} windows"
    texts = [read_text(path, "calibrate", f"a UTF-8 text file; {needed} are needed, {_GOOD}") for path in paths]
    tokenizer = open_tokenizer(checkpoint.directory).backend
    found = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64) for text in texts]
    names = ", ".join(map(str, paths))
    openings = [_opening(tokenizer, ids)[: window - 1] for ids in found]
    shares = _shares(
        [len(ids) // (window - len(opening)) for ids, opening in zip(found, openings, strict=True)], tokens // window
    )
    if sum(shares) < _FEWEST_WINDOWS:
        raise OptionError(
            f"calibrate {names}: {sum(map(len, found))} tokens, expected at least {_FEWEST_WINDOWS} windows of {window}; {_GOOD}"
        )
    parts = []
    for tokens_of_file, opening, share in zip(found, openings, shares, strict=True):
        body = window - len(opening)
        starts = np.linspace(0, len(tokens_of_file) // body - 1, share).astype(np.int64) * body
        parts.append(np.concatenate([np.tile(opening, (share, 1)), tokens_of_file[starts[:, None] + np.arange(body)]], 1))
    ids = np.concatenate(parts)
    sha256 = hashlib.sha256(repr(ids.shape).encode() + ids.astype("<i8").tobytes()).hexdigest()
    return CalibrationText(
        ids, sha256, tuple(unknown_warnings(tokenizer, np.concatenate(found).tolist(), f"calibrate {names}"))
    )


def _opening(tokenizer: Any, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What windows of a text begin with."""
    special = [index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    frame = text_frame(tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids)
    return np.array(frame[0] if frame and not np.isin(ids, special).any() else [], np.int64)


def _shares(available: Sequence[int], wanted: int) -> list[int]:
    """Windows to take from each file: as equal as possible, the first ones get what does not divide."""
    shares = [0] * len(available)
    while rest := min(wanted, sum(available)) - sum(shares):
        open_files = [index for index, count in enumerate(available) if shares[index] < count]
        each, more = divmod(rest, len(open_files))
        for place, index in enumerate(open_files):
            shares[index] += min(available[index] - shares[index], each + (place < more))
    return shares
