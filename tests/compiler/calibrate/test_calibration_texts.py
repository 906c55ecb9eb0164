"""Texts to calibrate with: what is no text, too little of it, or unknown to the tokenizer, for layers and cache alike."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.export import main
from fairy2i_export.compile.calibrate.text import _shares, read_texts
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.text.text_files import read_text, unknown_token, unknown_warnings
from fairy2i_export.source.text.tokenizer import open_tokenizer

ENDS = ["calibrate", "cache"]
KNOWN = " ".join(f"w{3 + number % 190}" for number in range(300))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def options_of(end: str, *paths: Any) -> dict[str, Any]:
    """Options of an export that reads texts: for the layers, or (the first of them) for the cache."""
    if end == "calibrate":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        return {"calibrate": list(paths)}
    return {"kv_cache": "int8", "cache_calibration": paths[0]}


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (write(b""), "is empty: the file holds no text"),
    (write(b" \n\t\r\n "), "the file holds no text, only blanks"),
    (write(b"\xef\xbb\xbf"), "the file holds no text, only blanks"),
    (write(b"caf\xe9 au lait " * 100), "found byte 0xe9, which is not UTF-8; convert it"),
    (write(KNOWN.encode("utf-16")), "begins like UTF-16"),
    (write(KNOWN.encode("utf-16-le")), "holds zero bytes"),
    (write(bytes(5000)), "holds zero bytes"),
    (write(KNOWN.encode() + b"\xed\xa0\x80"), "found byte 0xed, which is not UTF-8"),  # half of a character
    (lambda path: path.mkdir(), "is a folder"),
    (lambda path: None, "no such file"),
    (lambda path: os.mkfifo(path), "is a pipe"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    (lambda path: path.symlink_to(path.name), "cannot be read: "),  # to itself
]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names there")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("make", "words"), BAD)
def test_what_is_no_text(source: Path, tmp_path: Path, end: str, make: Callable[[Path], Any], words: str) -> None:
    text, good = tmp_path / "text", tmp_path / "good"
    make(text)
    good.write_text(KNOWN)
    options = options_of(end, *((good, text) if end == "calibrate" else (text,)))
    before = sorted(path.name for path in tmp_path.iterdir())
    for run in (export, dry_run):
        with pytest.raises(OptionError) as caught:
            run(source, tmp_path / "out", **options)
        message = str(caught.value)
        assert words in message
        assert str(text) in message
        assert "expected a UTF-8 text file" in message
        assert "tokens" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("words", "found"), [("w3", 1), ("w3 w4 w5 ", 3), ("w7 " * 31, 31)])
def test_too_little_text(source: Path, tmp_path: Path, end: str, words: str, found: int) -> None:
    text = tmp_path / "text"
    text.write_text(words)
    with pytest.raises(OptionError, match=rf"{found} tokens, expected at least (2 windows of 96|32 tokens)"):
        dry_run(source, tmp_path / "out", **options_of(end, text))


@pytest.mark.parametrize("end", ENDS)
def test_a_file_that_may_not_be_read(source: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text(KNOWN)
    original = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == text:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OptionError, match="text: cannot be read: Permission denied; expected a UTF-8 text file"):
        dry_run(source, tmp_path / "out", **options_of(end, text))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", [None, 5, b"text", ["nested"], "a\0b"])
def test_paths_of_a_wrong_type(source: Path, tmp_path: Path, end: str, path: Any) -> None:
    options = options_of(end, path)
    if end == "cache" and path is None:  # not given: the text that is built in
        assert dry_run(source, tmp_path / "out", **options)
        return
    with pytest.raises(OptionError, match="calibrat"):
        dry_run(source, tmp_path / "out", **options)


@pytest.mark.parametrize("tokens", [2.5, "many", True, 10, [500]])
def test_numbers_of_tokens_of_a_wrong_type(source: Path, tmp_path: Path, tokens: Any) -> None:
    text = tmp_path / "text"
    text.write_text(KNOWN)
    with pytest.raises(OptionError, match="calibrate tokens: expected at least 192"):
        dry_run(source, tmp_path / "out", **options_of("calibrate", text), calibrate_tokens=tokens)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (None, "tokenizer.json: missing"),
        (b"garbage", "cannot be read as a tokenizer"),
        (b"{}", "cannot be read as a tokenizer"),
    ],
)
def test_without_a_tokenizer_the_message_is_that_of_a_plain_export(
    source: Path, tmp_path: Path, end: str, contents: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text(KNOWN)
    options_of(end, text)
    (source / "tokenizer.json").unlink()
    if contents is not None:
        (source / "tokenizer.json").write_bytes(contents)
    with pytest.raises(CheckpointError) as plain:
        export(source, tmp_path / "out")
    assert words in str(plain.value)
    arguments = (
        ["--calibrate", str(text)] if end == "calibrate" else ["--kv-cache", "int8", "--cache-calibration", str(text)]
    )
    for more in ([], ["--dry-run"]):
        assert main([str(source), "-o", str(tmp_path / "out"), *arguments, *more]) == 2
        assert str(plain.value) in capsys.readouterr().err


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("words", "told"),
    [("known " * 300, "all of its"), ("x y w5 " * 100, "67% of its"), (KNOWN, "")],
)
def test_a_text_that_the_tokenizer_does_not_know(source: Path, tmp_path: Path, end: str, words: str, told: str) -> None:
    text = tmp_path / "text"
    text.write_text(words)
    warnings = [
        warning for warning in dry_run(source, tmp_path / "out", **options_of(end, text)).warnings if "<unk>" in warning
    ]
    assert len(warnings) == bool(told)
    assert all(told in warning and str(text) in warning for warning in warnings)


def test_the_text_that_is_built_in_can_be_unknown_too(source: Path, tmp_path: Path) -> None:
    (warning,) = [w for w in dry_run(source, tmp_path / "out", kv_cache="int8").warnings if "<unk>" in w]
    assert "the English text that is built in: all of its" in warning


def test_unknown_tokens_of_every_kind_of_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    known: list[tuple[Any, int | None]] = [
        (models.WordLevel(vocabulary, unk_token="[UNK]"), 0),
        (models.WordPiece(vocabulary, unk_token="[UNK]"), 0),
        (models.BPE(vocabulary, [], unk_token="[UNK]"), 0),
        (models.BPE(vocabulary, []), None),
        (models.Unigram([("a", -1.0), ("?", -2.0), ("b", -3.0)], unk_id=1), 1),
    ]
    for model, expected in known:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        assert unknown_token(tokenizer) == expected, model
        ids = tokenizer.encode("a b q q q").ids
        assert len(unknown_warnings(tokenizer, ids, "here")) == (expected is not None and ids.count(expected) > len(ids) / 2)


def test_a_tokenizer_that_cuts_texts_does_not_cut_these(source: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(source).backend
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(source / "tokenizer.json"))
    assert len(open_tokenizer(source).backend.encode(KNOWN).ids) == 300
    text = tmp_path / "text"
    text.write_text(KNOWN)
    for end in ENDS:
        dry_run(source, tmp_path / "out", **options_of(end, text))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffw3\r\nw4".encode())
    assert read_text(path, "calibrate", "text") == "w3\nw4"


@pytest.mark.parametrize(
    ("available", "wanted", "shares"),
    [
        ([10, 10], 8, [4, 4]),
        ([10, 10, 10], 8, [3, 3, 2]),
        ([1, 10], 8, [1, 7]),
        ([0, 10], 8, [0, 8]),
        ([2, 3], 8, [2, 3]),
        ([2, 4, 100], 30, [2, 4, 24]),
        ([5], 8, [5]),
    ],
)
def test_texts_share_the_tokens(available: list[int], wanted: int, shares: list[int]) -> None:
    assert _shares(available, wanted) == shares


def test_windows_are_of_one_text_each(source: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{word}" for word in (5, 6, 7)]
    for path, words in zip(paths, (5000, 5000, 100), strict=True):
        path.write_text(" ".join([f"w{path.name}"] * words))
    ids = read_texts(open_checkpoint(source), paths, 96 * 8, 96).ids
    assert ids.shape == (8, 96)
    assert (ids == ids[:, :1]).all()
    assert [int((ids[:, 0] == word).sum()) for word in np.unique(ids)] == [4, 3, 1]


def test_windows_of_plain_text_begin_as_texts_do(tmp_path: Path) -> None:
    """With what the tokenizer puts before a text; a text that has special tokens of its own is taken as it is."""
    source = make_checkpoint(tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    tokenizer.save(str(source / "tokenizer.json"))
    plain, talk = tmp_path / "plain", tmp_path / "talk"
    words = [f"w{3 + number % 190}" for number in range(95 * 4)]
    plain.write_text(" ".join(words))
    talk.write_text("<s> " + " ".join(words))
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
    found = read_texts(open_checkpoint(source), [plain], 96 * 8, 96).ids
    assert found.tolist() == [[first, *ids[95 * window : 95 * (window + 1)]] for window in range(4)]
    found = read_texts(open_checkpoint(source), [talk], 96 * 8, 96).ids
    assert found.flatten().tolist() == [first, *ids][: 96 * 3]
