"""tokenizer.json that makes the tokenizers library panic, abort or write texts without end: one error, at load and at export."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairy2i_export.errors import CheckpointError
from fairy2i_export.source.text.tokenizer import open_tokenizer as open_source
from fairy2i_runtime import load
from fairy2i_runtime.errors import Fairy2iRuntimeError, ModelFolderError
from fairy2i_runtime.text.tokenizer import Tokenizer
from fairy2i_runtime.text.tokenizer_file import TokenizerFileError, guarded
from runtime_models import CHECKPOINT, copy_of_stories


def charsmap(data: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


def replaced(count: int, content: str) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * count}


TRAP = (8).to_bytes(4, "little") + b"\xff" * 8 + b"ab"
SPECIAL = {"SpecialToken": {"id": "<missing>", "type_id": 0}}
BROKEN: dict[str, dict[str, Any]] = {
    "a map of three bytes": charsmap(b"abc"),
    "a map without a table": charsmap(b"\0\0\0\0"),
    "a table of 4 GB": charsmap(b"\xff" * 4),
    "a table of 2 GB": charsmap((1 << 31).to_bytes(4, "little") + b"a" * 100),
    "a table that points elsewhere": charsmap(TRAP),
    "a map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": 7}},
    "a post-processor without its token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [SPECIAL, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "pieces of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a prefix longer than a token": {
        "model": {
            "type": "BPE", "continuing_subword_prefix": "####", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
        }
    },
    "doubling 60 times": {"normalizer": replaced(60, "aa")},
    "a long replacement": {"normalizer": replaced(1, "a" * 100_000)},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 100_000}},
    "doubling in the decoder": {"decoder": {"type": "Sequence", "decoders": replaced(60, "aa")["normalizers"]}},
    "no model": {"model": None},
    "deep": {"normalizer": json.loads('{"type": "Sequence", "normalizers": [' * 90 + "]}" * 90)},
}  # fmt: skip


def write(folder: Path, change: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    data = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, **change}))
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tokenizers_are_one_line(tmp_path: Path, name: str) -> None:
    write(tmp_path, BROKEN[name])
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: ") as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        open_source(tmp_path)


def test_a_name_written_with_escapes_is_looked_at_too(tmp_path: Path) -> None:
    path = write(tmp_path, charsmap(b"\xff" * 4)) / "tokenizer.json"
    path.write_text(
        path.read_text().replace("Precompiled", "\\u0050recompiled").replace("precompiled_", "preco\\u006dpiled_")
    )
    with pytest.raises(ModelFolderError, match="the table is to take 4294967295"):
        Tokenizer.load(tmp_path)


def test_a_sound_map_and_usual_rules_are_taken(tmp_path: Path) -> None:
    """The map that the tokenizers library gives back for a table without entries."""
    write(tmp_path, charsmap((4 * 256).to_bytes(4, "little") + b"\0" * 4 * 256 + b"ss\0"))
    assert Tokenizer.load(tmp_path).encode("Once")
    write(tmp_path, {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}})
    assert (
        len(Tokenizer.load(tmp_path).encode("Once upon a time")) > 2
    )  # nothing is cut off, so its impossible values do no harm


def test_panics_at_some_texts_only_are_errors_as_well() -> None:
    class PanicException(BaseException):
        """As the library's, which is no Exception."""

    def panic() -> None:
        raise PanicException("index\nout of bounds")

    with pytest.raises(TokenizerFileError, match=r"gave up: index\\nout of bounds"):
        guarded(panic)
    with pytest.raises(KeyboardInterrupt):
        guarded(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_unknown_characters_without_a_token_for_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}, "added_tokens": [], "normalizer": None},
    )
    write_map = {"post_processor": None, "decoder": None}
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, **write_map}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: the tokenizers library refuses it"):
        tokenizer.encode("c")


def test_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(ModelFolderError, match="expected a tokenizer in a regular file, found a device"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="is a link to /dev/zero, outside of"):
        open_source(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="expected a checkpoint's file in a regular file, found a pipe"):
        open_source(tmp_path)


def test_commands_say_one_line(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path / "model")
    write(folder, BROKEN["a table of 4 GB"])
    ran = subprocess.run(
        [sys.executable, "-m", "fairy2i_runtime", "generate", str(folder), "Once"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    with pytest.raises(Fairy2iRuntimeError):
        load(folder)
