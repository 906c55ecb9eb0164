"""Rows of training data that are no text: skipped with one warning, or refused with file and row; files of every kind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("datasets")

from fairy2i_export.commands.tools import main
from fairy2i_export.errors import OptionError
from fairy2i_export.source.hub import open_source
from fairy2i_export.train.data import documents
from fairy2i_export.train.data.blocks import StreamedBlocks, stored_blocks
from fairy2i_export.train.data.documents import Skipped, open_documents
from fairy2i_export.train.data.packing import open_encoder
from training_helpers import arguments_of, make_recipe

A, B = "w3 w4 w5", "w6 w7\nw8"


def read(path: Path, field: str = "text") -> tuple[list[str], list[str]]:
    """Documents of a file, and the warnings about its rows."""
    skipped = Skipped()
    found = list(skipped.documents(iter(open_documents([str(path)], field, None))))
    return found, skipped.warnings


def jsonl(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def a_table(path: Path, values: list[Any], kind: Any = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(len(values))), "text": pyarrow.array(values, kind)}), path)
    return path


def not_utf8(path: Path) -> Path:
    """A Parquet file whose second text is not UTF-8: written as bytes, read as text."""
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([A.encode(), b"caf\xe9", B.encode()], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    return path


ODD = [
    ('{"text": null}', "null"),
    ('{"text": 5}', "int"),
    ('{"text": 2.5}', "float"),
    ('{"text": NaN}', "float"),
    ('{"text": true}', "bool"),
    ('{"text": ["w3"]}', "list"),
    ('{"text": {"w3": 1}}', "dict"),
    ('{"content": "w3"}', "no 'text'"),
    ("{}", "no 'text'"),
    ("[]", "no 'text'"),
    ('"w3"', "no 'text'"),
    ("null", "no 'text'"),
    ('{"text": ""}', "empty"),
    ('{"text": " \\n\\t"}', "empty"),
    ('{"text": "w3 \\ud800 w4"}', "half of a character, '\\ud800'"),
    ('{"text": "\\ude00\\ud83d"}', "half of a character, '\\ude00'"),
]


@pytest.mark.parametrize(("row", "problem"), ODD)
def test_a_row_without_text(tmp_path: Path, row: str, problem: str) -> None:
    good = json.dumps({"text": A}), json.dumps({"text": B, "n": 1})
    path = jsonl(tmp_path / "rows.jsonl", good[0], row, good[1])
    assert read(path) == ([A, B], [f"1 row without text is skipped: {path} row 2 ({problem})"])
    assert read(jsonl(path, row, *good))[1] == [f"1 row without text is skipped: {path} row 1 ({problem})"]


def test_one_warning_counts_all(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "rows.jsonl", json.dumps({"text": A}), *[row for row, _ in ODD], "", json.dumps({"text": "w9 \U0001f600"})
    )
    found, (warning,) = read(path)
    assert found == [A, "w9 \U0001f600"]
    assert warning.startswith(f"{len(ODD)} rows without text are skipped: {path} row 2 (null), {path} row 3 (int), ")
    assert warning.endswith("row 6 (bool), ...")


def columns(path: Path) -> Path:
    path.write_text(json.dumps({"text": [A, None, B], "n": [1, 2, 3]}, indent=1))
    return path


def a_list(path: Path) -> Path:
    path.write_text(json.dumps([{"text": A}, {"text": None}, {"text": B}], indent=1))
    return path


def a_list_in_one_line(path: Path) -> Path:
    path.write_text(json.dumps([{"text": A}, {"text": None}, {"text": B}]))
    return path


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(
            pack("\ufeff".encode() + b"".join(json.dumps({"text": t}).encode() + b"\r\n" for t in (A, None, B)))
        )
        return path

    return write


def a_csv(path: Path) -> Path:
    end = "\t" if path.suffix == ".tsv" else ","
    path.write_text(f'n{end}text\r\n1{end}{A}\r\n2{end}\r\n3{end}"{B}"\r\n', encoding="utf-8-sig", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("table.parquet", lambda path: a_table(path, [A, None, B]), "null"),
        ("bytes.parquet", not_utf8, "bytes"),
        ("table.csv", a_csv, "empty"),
        ("table.tsv", a_csv, "empty"),
        ("list.json", a_list, "null"),
        ("list.jsonl", a_list, "null"),
        ("line.json", a_list_in_one_line, "null"),
        ("columns.json", columns, "null"),
        ("rows.json", packed(bytes), "null"),
        ("rows.jsonl.gz", packed(gzip.compress), "null"),
        ("rows.jsonl.bz2", packed(bz2.compress), "null"),
        ("rows.json.xz", packed(lzma.compress), "null"),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, write: Callable[[Path], Path], problem: str) -> None:
    path = write(tmp_path / name)
    assert read(path) == ([A, B], [f"1 row without text is skipped: {path} row 2 ({problem})"])


def test_a_csv_with_rows_that_are_too_short(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f'n,text\n1\n\n2,"{"w3 " * 100_000}"\n3,"w4 ""w5"", w6",more\n')
    assert read(path) == (["w3 " * 100_000, 'w4 "w5", w6'], [f"1 row without text is skipped: {path} row 1 (no 'text')"])


BROKEN: list[tuple[str, bytes, str]] = [
    ("x.jsonl", b'{"text": "w3"}\n{"text": "w4"\n{"text": "w5"}\n', "cannot be read: row 2, column 14: broken JSON"),
    ("x.jsonl", b'{"text": "w3"}\n\nw4\n', "cannot be read: row 3, column 1: broken JSON"),
    ("x.jsonl", b'{"text": "w3"}\n{"text": "caf\xe9"}\n', "cannot be read: row 2: expected UTF-8 text; found byte 0xe9"),
    ("x.jsonl", b"\x00\x01\x02", "cannot be read: row 1, column 1: broken JSON"),
    ("x.jsonl", b'{"text": "w3"}\n' + b"[" * 100_000, "cannot be read: row 2"),
    ("x.jsonl", b'{"text": 1' + b"0" * 10_000 + b"}\n", "cannot be read: row 1: broken JSON"),
    ("x.json", b'[\n {"text": "w3"},\n {"text": w4}\n]\n', "cannot be read: row 3, column 11: broken JSON"),
    ("x.json", b'{"text": "w3"}\n{"text": "w4"]\n', "cannot be read: row 2, column 14: broken JSON"),
    ("x.json", '[{"text": "w3"}]'.encode("utf-16"), "expected UTF-8 text; found byte 0xff"),
    ("x.csv", b'text\nw3\n"w4\n', "cannot be read: row 2 (line 3): unexpected end of data"),
    ("x.csv", b"text\nw3\ncaf\xe9\n", "cannot be read: row 3: expected UTF-8 text"),
    ("x.parquet", b"garbage", "expected a Parquet file"),
    ("x.jsonl.gz", gzip.compress(b'{"text": "w3"}\n' * 1000)[:-12], "cannot be unpacked after row"),
    ("x.jsonl.gz", b"garbage", "cannot be unpacked after row 0"),
    ("x.jsonl.xz", b"garbage", "cannot be unpacked after row 0"),
    ("x.txt.gz", gzip.compress(b"w3"), "compressed text is read as .jsonl only"),
    (
        "x.jsonl",
        b'{"text": null}\n{"text": 5}\n',
        "none of its 2 rows has text in the column 'text' (row 1: null, row 2: int)",
    ),
    ("x.jsonl", b'{"body": "w3", "n": 1}\n{"body": "w3"}\n', "expected a column 'text' of text, found body (str), n (int)"),
    ("x.jsonl", b"[]\n5\n", "expected a column 'text' of text, found no columns"),
    ("x.json", b"[]", "is empty, it has no rows"),
    ("x.csv", b"body,n\nw3,1\n", "expected a column 'text' of text, found body, n; choose it with --field"),
    ("x.csv", b"n,text\n1,\n2,\n", "none of its 2 rows has text in the column 'text' (row 1: empty, row 2: empty)"),
    ("x.csv", b"text\n", "is empty, it has no rows"),
    ("x.txt", b"w3 w4 caf\xe9", "expected UTF-8 text; found byte 0xe9"),
    ("x.txt", "w3 w4".encode("utf-16"), "begins like UTF-16"),
    ("x.txt", b"w3\x00\x00", "holds zero bytes"),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN)
@pytest.mark.parametrize("option", ["data", "eval_data"])
def test_what_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, words: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    recipe = make_recipe(tmp_path, **{"eval_data": (), option: (str(tmp_path / name),)})
    assert main(arguments_of(recipe)) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("fairy2i: error: ")
    assert str(tmp_path / name) in message
    assert words in message
    assert not recipe.output.exists()


def test_a_column_of_bytes_is_named(tmp_path: Path) -> None:
    path = a_table(tmp_path / "x.parquet", [b"w3", b"w4"])
    with pytest.raises(
        OptionError, match=r"none of its 2 rows has text in the column 'text' \(row 1: bytes, row 2: bytes\)"
    ):
        read(path)
    with pytest.raises(
        OptionError, match=r"expected a column 'body' of text, found n \(int64\), text \(binary\); choose it"
    ):
        read(path, "body")


def test_another_column_that_nobody_has_is_noticed_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "x.jsonl", *['{"body": "w3"}'] * 5, "broken")
    monkeypatch.setattr(documents, "_TRIED", 5)
    with pytest.raises(OptionError, match=r"expected a column 'text' of text, found body \(str\)"):
        read(path)


def test_rows_of_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"n": [1, 2, 3], "body": [A, None, B]}).to_iterable_dataset()
    monkeypatch.setattr(documents, "_load", lambda *_: rows)
    skipped = Skipped()
    assert list(skipped.documents(iter(open_documents(["hf:some/data"], "body", None)))) == [A, B]
    assert skipped.warnings == ["1 row without text is skipped: hf:some/data row 2 (null)"]
    lines = jsonl(tmp_path / "more.jsonl", json.dumps({"body": "w9"}))
    assert [row["text"] for row in open_documents(["hf:some/data", str(lines)], "body", None)] == [A, None, B, "w9"]
    with pytest.raises(OptionError, match=r"hf:some/data: expected a column 'text' of text, found n \(int\), body \(str\)"):
        open_documents(["hf:some/data"], "text", None)


def test_blocks_are_those_of_the_rows_with_text(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, separator=None)
    texts = Path(recipe.data[0]).read_text().split("<|end|>")
    clean = jsonl(tmp_path / "clean.jsonl", *(json.dumps({"text": text}) for text in texts))
    rows = [row for text, odd in zip(texts, ODD * len(texts), strict=False) for row in (odd[0], json.dumps({"text": text}))]
    odd = jsonl(tmp_path / "odd.jsonl", *rows)
    encoder = open_encoder(open_source(recipe.source), 210, "none", None)
    said: list[str] = []
    for _ in range(2):  # made, then read again
        blocks = stored_blocks(tmp_path / "a", "train", (str(odd),), recipe, encoder, 32, warn=said.append)
    assert (blocks == stored_blocks(tmp_path / "b", "train", (str(clean),), recipe, encoder, 32)).all()
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith(f"{len(texts)} rows without text are skipped")
    streams = [StreamedBlocks(replace(recipe, data=(str(path),), shuffle_buffer=1), encoder, 32) for path in (odd, clean)]
    for _, left, right in zip(range(len(blocks)), *streams, strict=False):
        assert (left["input_ids"] == right["input_ids"]).all()
    assert streams[0].skipped.count > 0
    assert streams[1].skipped.warnings == []


@pytest.mark.parametrize("more", [(), ("--streaming",)])
def test_the_command_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    path = jsonl(tmp_path / "rows.jsonl", *[json.dumps({"text": "w3 w4 w5 " * 20}), '{"text": null}'] * 4)
    recipe = make_recipe(tmp_path, data=(str(path),), eval_data=(), steps=3)
    assert main([argument for argument in arguments_of(recipe) if argument != "--quiet"] + list(more)) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "without text" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: 4 rows without text are skipped: {path} row ")


@pytest.mark.parametrize("more", [(), ("--streaming",)])
def test_text_that_the_tokenizer_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("other words " * 200)
    recipe = make_recipe(tmp_path, data=(str(path),), eval_data=(), steps=1)
    assert main([argument for argument in arguments_of(recipe) if argument != "--quiet"] + list(more)) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "<unk>" in line]
    assert f"the beginning of {path}: all of its" in warning
