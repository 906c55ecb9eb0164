"""What a tokenizer.json says, reduced to what the graphs need; what they cannot express is refused here, by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairy2i_export.errors import CheckpointError, TokenizerError
from fairy2i_export.source.text.tokenizer import SourceTokenizer, open_tokenizer

Prefix = Literal["never", "first", "always", "prepend"]
META = "▁"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Description:
    """A tokenizer.

    Attributes:
        json: the parsed tokenizer.json.
        kind: ``byte_level`` (GPT-2 and later) or ``sentencepiece`` (LLaMA-2 and later).
        vocabulary: tokens by id, added ones included.
        added: contents of the added tokens by id; they are found in the text before anything else.
        special: ids that ``skip_special_tokens`` leaves out of decoded text.
        before, after: ids that are put around every text, such as the beginning-of-text token.
        pad: id that fills up the shorter rows of a batch.
        prefix: where SentencePiece's leading space goes: nowhere, before the text, before every stretch between added
            tokens that has none, or before every such stretch (``prepend``).
        strip: spaces that decoding removes at the start and at the end.
        digits: byte-level only, a regular expression of what is set apart before anything else is split; may be empty.
    """

    json: dict[str, Any]
    kind: Literal["byte_level", "sentencepiece"]
    vocabulary: dict[int, str]
    added: dict[int, str]
    special: frozenset[int]
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    prefix: Prefix = "never"
    strip: tuple[int, int] = (0, 0)
    digits: str = ""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary) + 1


def read_tokenizer(path: Path) -> SourceTokenizer:
    """The tokenizer of a tokenizer.json, with the tokens that the files beside it name.

    Raises:
        TokenizerError: it cannot be read.
    """
    try:
        return open_tokenizer(path.parent)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error


def describe_tokenizer(path: Path) -> Description:
    """Read a tokenizer.json and the files beside it.

    Args:
        path: the file.

    Raises:
        TokenizerError: it cannot be read, or the graphs cannot express what it does.
    """
    source = read_tokenizer(path)
    tokenizer = source.backend
    data: dict[str, Any] = json.loads(tokenizer.to_str())  # normalized: the spelling of old files differs
    model = data["model"]
    if model["type"] != "BPE":
        raise _refused(path, f"its model is {model['type']}; only BPE is known")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused(path, "its BPE model uses dropout, continuing_subword_prefix or end_of_word_suffix")
    for token in data["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(path, f"the added token {token['content']!r} uses lstrip, rstrip or single_word")
    before, after = _frame(tokenizer, path)
    added = {token["id"]: token["content"] for token in data["added_tokens"]}
    vocabulary = {index: token for token, index in model["vocab"].items()} | added
    if not vocabulary:
        raise _refused(path, "it has no tokens")
    common: dict[str, Any] = {
        "json": data,
        "vocabulary": vocabulary,
        "added": added,
        "special": frozenset(token["id"] for token in data["added_tokens"] if token["special"]),
        "before": before,
        "after": after,
        "pad": tokenizer.token_to_id(source.special_tokens.get("pad_token", "")) or 0,
    }
    decoder = data["decoder"] or {"type": "none"}
    if decoder["type"] == "ByteLevel":
        return Description(kind="byte_level", digits=_byte_level_digits(path, data), **common)
    strip = _sentencepiece_decoder(decoder)
    if strip is None:
        raise _refused(
            path, f"its decoder {_names(decoder)} is neither that of byte-level BPE nor that of SentencePiece BPE"
        )
    return Description(kind="sentencepiece", prefix=_prefix(path, data), strip=strip, **common)


def _refused(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{path}: cannot become an ONNX graph: {reason}; leave --tokenizer-onnx out and ship tokenizer.json"
    )


def _frame(tokenizer: Any, path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text."""
    from fairy2i_runtime.text.tokenizer import text_frame

    frame = text_frame(tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids)
    if frame is not None and [*frame[0], *frame[1]] == tokenizer.encode("").ids:
        return tuple(frame[0]), tuple(frame[1])
    raise _refused(path, "its post-processor does more than putting tokens before and after a text")


def _byte_level_digits(path: Path, data: dict[str, Any]) -> str:
    """The regular expression of :attr:`Description.digits`; refuses what the operator for byte-level BPE does not do."""
    if data["normalizer"] is not None:
        names = " + ".join(step["type"] for step in _steps(data["normalizer"], "normalizers"))
        raise _refused(path, f"its normalizer is {names}, and no operator normalizes Unicode")
    steps = _steps(data["pre_tokenizer"], "pretokenizers")
    digits = ""
    if len(steps) == 2 and steps[0]["type"] == "Digits":
        digits = r"\p{N}" if steps[0]["individual_digits"] else r"\p{N}+"
        steps = steps[1:]
    kinds = [step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _refused(
            path,
            f"its pre-tokenizer is {' + '.join(kinds) or 'none'}; the operator knows ByteLevel alone, or after Digits "
            "or one Split by a regular expression",
        )
    if steps[-1].get("add_prefix_space"):
        raise _refused(path, "its pre-tokenizer adds a space in front of the text")
    if (len(steps) == 2) == steps[-1].get("use_regex", True):
        raise _refused(path, "its pre-tokenizer splits by two regular expressions, or by none")
    if len(steps) == 2 and (steps[0]["behavior"] != "Isolated" or steps[0]["invert"] or "Regex" not in steps[0]["pattern"]):
        raise _refused(path, "its pre-tokenizer's Split is not one that isolates the matches of a regular expression")
    return digits


def _sentencepiece_decoder(decoder: dict[str, Any]) -> tuple[int, int] | None:
    """Spaces stripped at either end; None if this is no SentencePiece decoder."""
    steps = _steps(decoder, "decoders")
    if [step["type"] for step in steps[:3]] != ["Replace", "ByteFallback", "Fuse"]:
        return None
    if steps[0]["pattern"] != {"String": META} or steps[0]["content"] != " ":
        return None
    if len(steps) == 3:
        return 0, 0
    last = steps[3]
    return (last["start"], last["stop"]) if len(steps) == 4 and last["type"] == "Strip" and last["content"] == " " else None


def _prefix(path: Path, data: dict[str, Any]) -> Prefix:
    """The leading space; refuses normalizers and pre-tokenizers that do anything but writing spaces as META."""
    prefix: Prefix = "never"
    replaces = False
    for step in _steps(data["normalizer"], "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == META:
            prefix = "prepend"
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == META:
            replaces = True
        else:
            raise _refused(path, f"its normalizer {step['type']} changes more than spaces")
    if prefix == "prepend" and any(token["normalized"] for token in data["added_tokens"]):
        raise _refused(path, "it looks for added tokens in the normalized text (normalized: true)")
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == META and not step["split"] and prefix == "never":
            prefix = step["prepend_scheme"]
            replaces = True
        elif not (
            step["type"] == "Split" and step["pattern"] == {"String": " "} and replaces
        ):  # no space is left to split at
            raise _refused(path, f"its pre-tokenizer {step['type']} splits the text")
    if not replaces:
        raise _refused(path, "it does not write spaces as SentencePiece does")
    return prefix


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _names(decoder: dict[str, Any]) -> str:
    return " + ".join(step["type"] for step in _steps(decoder, "decoders"))
