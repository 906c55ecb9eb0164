"""An export that is interrupted, however brutally, is continued by the next one, and its result has the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import heed_interrupts
from export_helpers import Recorder, assert_same, edit_json, make_checkpoint, write_safetensors
from fairy2i_export import export
from fairy2i_export.errors import CheckpointError, LibraryError, OptionError, OutputError
from fairy2i_export.output.journal import Journal
from fairy2i_export.output.progress import Observer
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_runtime import core


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def shard(source: Path, parts: int = 3) -> Path:
    """Cut the one file of a checkpoint into shards."""
    checkpoint = open_checkpoint(source)
    names = list(checkpoint.owners)
    shards = {f"model-{i + 1:05d}-of-{parts:05d}.safetensors": names[i::parts] for i in range(parts)}
    for file, part in shards.items():
        write_safetensors(source / file, {name: checkpoint.read(name) for name in part})
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()
    return source


def interrupt(source: Path, out: Path, after: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(source, out, observer=Recorder(after), **options)
    assert not out.exists()
    assert (out.parent / f".{out.name}.partial").is_dir()


COMMAND = """
import sys, time
from fairy2i_export.compile import run as exporter
from fairy2i_export.compile import tasks as weights

class Slow(exporter.Observer):
    def advance(self, amount):
        print(amount, flush=True)
        time.sleep(0.03)

exporter.export(sys.argv[1], sys.argv[2], observer=Slow())
"""


@pytest.mark.parametrize("times", [1, 3])
def test_a_killed_export_is_continued(source: Path, tmp_path: Path, times: int) -> None:
    """SIGKILL in the middle, once or again and again: what is finished is not redone, and the bytes are the same."""
    shard(source)
    out = tmp_path / "out"
    lines = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", COMMAND, str(source), str(out)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(6):  # the first line tells what was there, every other one is a tensor
            assert process.stdout.readline()
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        journal = (tmp_path / ".out.partial" / "journal").read_text().splitlines()
        assert len(journal) > lines
        lines = len(journal)
        assert not out.exists()
    finished = sum('"id"' in line for line in journal)
    assert finished >= 5 * times

    recorder = Recorder()
    report = export(source, out, observer=recorder)
    assert report.reused == finished
    total = len(open_checkpoint(source).owners)
    assert recorder.tensors == 1 + total - finished  # the rest and no more
    assert recorder.notes == [f"continuing an unfinished export: {finished} of {total} tensors are there"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    reference = export(source, tmp_path / "reference")
    assert_same(out, reference.path)
    assert reference.reused == 0
    assert report.errors == reference.errors
    assert report.source_sha256 == reference.source_sha256 == open_checkpoint(source).sha256()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_is_finished(tmp_path: Path, number: signal.Signals, code: int) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    source = make_checkpoint(tmp_path / "model", num_hidden_layers=8, **sizes)
    command = [
        sys.executable,
        "-m",
        "fairy2i_export.commands.export",
        str(source),
        "-o",
        str(tmp_path / "out"),
        "--stages",
        "4",
        "-j1",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ, preexec_fn=heed_interrupts
    )
    journal = tmp_path / ".out.partial" / "journal"
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "the same command continues it" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "model"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing an unfinished export" in result.stderr
    assert "tensors were finished before" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("options", [{}, {"row_multiplier": "rms", "lm_head": "int4", "embedding": "int8"}])
def test_every_place_to_stop(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    reference = export(source, tmp_path / "reference", **options)
    total = len(open_checkpoint(source).owners)
    for after in (1, 7, total):
        out = tmp_path / f"out{after}"
        interrupt(source, out, after, **options)
        report = export(source, out, **options)
        assert report.reused == after
        assert_same(report.path, reference.path)


@pytest.mark.parametrize("measured", [False, True])
def test_stopped_while_the_cache_is_calibrated(tmp_path: Path, measured: bool) -> None:
    """Its scales lie in the data file and change in place; what the journal says of the rest stays true."""

    class Calibrating(Recorder):
        calibrating = False

        def phase(self, title: str, total: int) -> None:
            self.calibrating = title == "calibrating"
            if self.calibrating and not measured:
                raise KeyboardInterrupt

        def advance(self, amount: int) -> None:
            if self.calibrating:
                raise KeyboardInterrupt

    source = make_checkpoint(tmp_path / "model", num_attention_heads=4, num_key_value_heads=4, head_dim=72)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(source, out, kv_cache="int8", observer=Calibrating())
    assert (tmp_path / ".out.partial" / "folder" / "model.onnx").is_file()
    report = export(source, out, kv_cache="int8")
    assert report.reused == len(open_checkpoint(source).owners)
    assert_same(report.path, export(source, tmp_path / "reference", kv_cache="int8").path)


def test_a_missing_library_does_no_harm(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to a checkpoint nor to what an interrupted export has finished."""
    interrupt(source, tmp_path / "out", 5)
    core._library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "nothing.so"))
        with pytest.raises(LibraryError, match="which also quantizes, cannot be used"):
            export(source, tmp_path / "out")
    assert export(source, tmp_path / "out").reused == 5


def test_other_options_start_anew(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out", 9)
    recorder = Recorder()
    report = export(source, tmp_path / "out", stages=1, observer=recorder)
    assert recorder.notes == ["starting anew: an unfinished export was found, but the options are others"]
    assert report.reused == 0
    assert_same(report.path, export(source, tmp_path / "reference", stages=1).path)


def test_a_changed_checkpoint_starts_anew(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out", 9)
    os.utime(source / "model.safetensors")
    recorder = Recorder()
    assert export(source, tmp_path / "out", observer=recorder).reused == 0
    assert recorder.notes == ["starting anew: an unfinished export was found, but the checkpoint has changed"]
    interrupt(source, tmp_path / "more", 9)
    edit_json(source / "config.json", rope_theta=5000.0)
    assert export(source, tmp_path / "more").reused == 0


def test_changed_weights_of_the_same_age_are_noticed(source: Path, tmp_path: Path) -> None:
    """The time of a file can be forged; the hash of what was read cannot."""
    interrupt(source, tmp_path / "out", 9)
    path = source / "model.safetensors"
    status = path.stat()
    changed = bytearray(path.read_bytes())
    info = open_checkpoint(source).info("model.layers.0.self_attn.k_proj.weight")
    changed[info.begin + 1] ^= 0x80  # the sign of one weight
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    recorder = Recorder()
    report = export(source, tmp_path / "out", observer=recorder)
    assert any("has changed; this tensor is made again" in note for note in recorder.notes)
    assert_same(report.path, export(source, tmp_path / "reference").path)
    assert report.source_sha256 == open_checkpoint(source).sha256()


def test_damaged_output_is_made_again(source: Path, tmp_path: Path) -> None:
    """Bytes that never reached the disk, for instance because the machine lost power."""
    reference = export(source, tmp_path / "reference")
    interrupt(source, tmp_path / "out", 12)
    partial = tmp_path / ".out.partial"
    journal = [json.loads(line) for line in (partial / "journal").read_text().splitlines()]
    places = [place for entry in journal[1:] for place in entry["outputs"].values() if "offset" in place]
    with (partial / "folder" / "model.onnx.data").open("r+b") as file:
        file.seek(places[-1]["offset"] + places[-1]["size"] - 1)
        last = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last[0] ^ 1]))
    report = export(source, tmp_path / "out")
    assert report.reused == 11
    assert_same(report.path, reference.path)
    for damage in (b"", b"no journal\n", b'{"journal": 1}\n'):
        interrupt(source, tmp_path / "again", 5)
        (tmp_path / ".again.partial" / "journal").write_bytes(damage)
        report = export(source, tmp_path / "again")
        assert report.reused == 0
        assert_same(report.path, reference.path)
        export(source, tmp_path / "again", force=True, stages=1)
        for path in (tmp_path / "again").iterdir():
            path.unlink()
        (tmp_path / "again").rmdir()


def test_a_journal_that_was_cut_off(tmp_path: Path) -> None:
    expected = {"tool": "1", "source": "2", "options": "3"}
    path = tmp_path / "journal"
    journal = Journal(path)
    assert journal.resume(expected) is None
    journal.finished_tensor("a", "digest", {"a": {"size": 1, "bytes": "AA=="}}, 0.5)
    journal.finished_file("f", "hash")
    journal.finished_tensor("b", "digest", {}, None)
    journal.close()
    path.write_bytes(path.read_bytes()[:-3])
    journal = Journal(path)
    assert journal.resume(expected) is None
    assert (list(journal.tensors), journal.files) == (["a"], {"f": "hash"})
    assert journal.tensors["a"]["error"] == 0.5
    journal.finished_tensor("c", "digest", {}, None)
    journal.close()
    journal = Journal(path)
    assert journal.resume(expected) is None
    assert list(journal.tensors) == ["a", "c"]
    journal.close()
    for what, words in (("tool", "another version"), ("source", "checkpoint"), ("options", "options")):
        journal = Journal(path)
        assert words in str(journal.resume({**expected, what: "x"}))
        assert not journal.tensors
        journal.close()
        expected[what] = "x"


def test_two_exports_into_one_folder(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")

    class Nested(Observer):
        def planned(self, *_: Any) -> None:
            with pytest.raises(OutputError, match="another export into this folder is running"):
                export(source, tmp_path / "out")

    export(source, tmp_path / "out", observer=Nested())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_foreign_folder_of_that_name_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(OutputError, match="exists and is no unfinished export"):
        export(source, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_jobs_do_not_change_the_bytes(tmp_path: Path, jobs: int) -> None:
    source = make_checkpoint(
        tmp_path / "model", vocab_size=3000, hidden_size=576, num_attention_heads=9, intermediate_size=1536
    )
    reference = export(source, tmp_path / "reference", jobs=3, lm_head="int8")
    report = export(source, tmp_path / "out", jobs=jobs, lm_head="int8")
    assert_same(report.path, reference.path)
    assert report.errors == reference.errors


@pytest.mark.parametrize("jobs", [0, -1, True, 1.5])
def test_bad_jobs(source: Path, tmp_path: Path, jobs: Any) -> None:
    with pytest.raises(OptionError, match="jobs: expected a number from 1"):
        export(source, tmp_path / "out", jobs=jobs)


def test_shards_give_the_same_model(source: Path, tmp_path: Path) -> None:
    """Tensors are worked on in the order in which they lie in the files, but written in the order of the graph."""
    whole = export(source, tmp_path / "whole")
    parts = export(shard(source), tmp_path / "parts")
    assert (whole.path / "model.onnx.data").read_bytes() == (parts.path / "model.onnx.data").read_bytes()
    assert whole.source_sha256 != parts.source_sha256 == open_checkpoint(source).sha256()


def test_a_file_that_shrinks_while_it_is_read(source: Path, tmp_path: Path) -> None:
    class Shrinking(Observer):
        def planned(self, *_: Any) -> None:
            path = source / "model.safetensors"
            os.truncate(path, path.stat().st_size - 1000)

    with pytest.raises(CheckpointError, match="ends early; the file changed while it was read"):
        export(source, tmp_path / "out", observer=Shrinking())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overlapping_tensors_are_refused(source: Path, tmp_path: Path) -> None:
    path = source / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    q, v = (header[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "kv")
    v["data_offsets"] = q["data_offsets"]
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(CheckpointError, match="overlaps another one"):
        export(source, tmp_path / "out")
