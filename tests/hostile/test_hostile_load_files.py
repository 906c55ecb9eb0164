"""Files of a model folder that are none: pipes, devices, sockets, folders, huge files, JSON nested without end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fairy2i_runtime.errors import ModelFolderError
from fairy2i_runtime.jsonfile import read_json, read_optional_json
from fairy2i_runtime.regular_file import JSON_BYTES, JSON_DEPTH, open_regular, parse_json, read_regular


def special(kind: str, path: Path) -> None:
    """Make something at ``path`` that is no regular file of a sensible size."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the address may have about 100 bytes
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)


KINDS = ("pipe", "socket", "folder", "device", "at most")


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.json"
    special(kind, path)
    with pytest.raises(OSError, match=rf"expected a thing.*{kind}"):
        open_regular(path, 1 << 20, "a thing")
    for read in (read_json, read_optional_json):
        with pytest.raises(ModelFolderError, match=rf"file\.json: expected a configuration.*{kind}"):
            read(path)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"x" * 100)
    link.symlink_to(path)
    assert read_regular(link, 100, "a thing") == b"x" * 100
    with pytest.raises(OSError, match="at most 99 bytes, found 100 bytes"):
        read_regular(path, 99, "a thing")
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "other", 99, "a thing")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_a_file_that_does_not_tell_its_size_is_not_read_to_its_end() -> None:
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(OSError, match="at most 100 bytes, found more"):
        read_regular(Path("/proc/self/maps"), 100, "a thing")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\ud800"])
def test_a_name_that_no_file_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / name, 100, "a thing")
    assert caught.value.strerror


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_is_nested_as_deeply_as_it_may(opening: str) -> None:
    closing, inner = {"[": "]"}.get(opening, "}"), "1"
    most = opening * JSON_DEPTH + inner + closing * JSON_DEPTH
    assert parse_json(most)
    for levels in (1, 500, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(opening * levels + most + closing * levels)


def test_deep_and_large_json_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ModelFolderError, match="nested too deeply"):
        read_json(path)
    path.write_text(" " * (JSON_BYTES + 1))
    with pytest.raises(ModelFolderError, match="at most"):
        read_json(path)
    path.write_text('{"a": ' + "9" * 10_000 + "}")  # Python refuses to make a number of it
    with pytest.raises(ModelFolderError, match="not valid JSON"):
        read_json(path)
