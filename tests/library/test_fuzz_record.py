"""The record of fuzzing (scripts/fuzz_record.py): runs are measured, taken from logs and added once; the page has its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="libFuzzer's targets are built on POSIX systems alone")
if os.name == "posix":
    sys.path.insert(0, str(ROOT / "scripts"))
    import fuzz_record

LINES = """\
fuzz_pack rc=0 wall=604 cpu=352.689 2.452 runs=619518 corpus=515 cov: 116 ft: 519
fuzz_pack rc=77 wall=20 cpu=7.500 0.048 runs=900 corpus=517 cov: 118 ft: 521
"""
# a target that works for a moment and says what libFuzzer says
TARGET = """#!{python}
import sys, time
while time.process_time() < 0.2: pass
kept, seconds = sys.argv[1:]
assert seconds == "-max_total_time=1"
open(kept + "/one", "w").close()
print("#2\\tINITED cov: 10 ft: 20 corp: 1/1b exec/s: 0 rss: 30Mb", file=sys.stderr)
print("#900\\tDONE   cov: 11 ft: 23 corp: 1/1b exec/s: 0 rss: 30Mb", file=sys.stderr)
print({ended!r}, "stat::number_of_executed_units: 900", sep="\\n", file=sys.stderr)
sys.exit({code})
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of its own, empty, and a page that is written from it."""
    monkeypatch.setattr(fuzz_record, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(fuzz_record, "PAGE", tmp_path / "page.md")
    (tmp_path / "record.json").write_text("[]\n")
    (tmp_path / "page.md").write_text(f"before\n{fuzz_record.BEGIN}old\n{fuzz_record.END}after\n")
    return tmp_path / "record.json"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fuzz_record.py", *map(str, arguments)])
    return fuzz_record.main()


def test_the_table_is_current() -> None:
    text = fuzz_record.PAGE.read_text(encoding="utf-8")
    assert text.count(fuzz_record.BEGIN) == text.count(fuzz_record.END) == 1
    assert text == fuzz_record.page(), "run python scripts/fuzz_record.py table"
    assert all(f"`{target}`" in fuzz_record.table() for target in fuzz_record.TARGETS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(target in makefile for target in fuzz_record.TARGETS)


def test_the_record_is_of_whole_runs() -> None:
    runs = fuzz_record.read()
    assert len({run.key for run in runs}) == len(runs)
    for run in runs:
        assert min(run.user, run.executions, run.coverage, run.features, run.corpus) > 0, run
        assert run.findings in (0, 1), run
        assert all((run.commit, run.processor, run.date)), run


def test_lines_are_taken_once(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "cpu.log"
    log.write_text(LINES)
    options = ("--commit", "2e41396", "--processor", "Some | Processor", "--date", "2026-11-28")
    assert call(monkeypatch, "lines", log, *options) == 0
    assert [(run.user, run.system, run.executions, run.findings) for run in fuzz_record.read()] == [
        (352.689, 2.452, 619518, 0),
        (7.5, 0.048, 900, 1),
    ]
    page = fuzz_record.PAGE.read_text()
    row = "| `fuzz_pack` | 0.10 h | 620,418 | 118 | 521 | 517 | 1 | 2e41396 | 2026-11-28 |\n"
    assert row in page
    assert page.startswith("before\n")
    assert page.endswith(f"\nOn: Some | Processor.\n{fuzz_record.END}after\n")
    before = record.read_text()
    log.write_text(LINES + LINES)
    assert call(monkeypatch, "lines", log, *options, "--date", "2026-11-30") == 0
    assert record.read_text() == before
    assert len(json.loads(before)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fuzz_pack rc=0 cpu=1.0 2.0", "line 1: expected TARGET rc="),
        (LINES.splitlines()[0].replace("fuzz_pack", "fuzz_other"), "expected a target of custom_ops/fuzz"),
    ],
)
def test_other_lines_are_refused(
    line: str,
    message: str,
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "log").write_text(f"{line}\n")
    assert call(monkeypatch, "lines", tmp_path / "log", "--commit", "2e41396", "--processor", "one") == 2
    assert message in capsys.readouterr().err
    assert record.read_text() == "[]\n"


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ("Done 900 runs in 1 second(s)", 0),
        ("artifact_prefix='fuzz_layer-'; Test unit written to fuzz_layer-slow-unit-0", 0),
        ("artifact_prefix='fuzz_layer-'; Test unit written to fuzz_layer-crash-0", 77),
    ],
)
def test_a_run_is_measured(ended: str, code: int, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, corpus = tmp_path / "fuzz_layer", tmp_path / "corpus"
    target.write_text(TARGET.format(python=sys.executable, ended=ended, code=code))
    target.chmod(0o755)
    corpus.mkdir()
    command = ("--", target, corpus, "-max_total_time=1")
    assert call(monkeypatch, "run", tmp_path / "log", *command) == code
    assert fuzz_record.read() == []
    assert call(monkeypatch, "run", "--record", tmp_path / "log", *command) == code
    (run,) = fuzz_record.read()
    assert (run.target, run.executions, run.coverage, run.features, run.corpus) == ("fuzz_layer", 900, 11, 23, 1)
    assert run.findings == int(code != 0)
    assert 0.2 <= run.user + run.system < 60
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert run.commit.removesuffix("-dirty") in (head[:7], "unknown")
    assert run.processor


def test_a_run_that_says_nothing_is_no_record(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--record", tmp_path / "log", "--", "true") == 2
    assert "expected cov:, ft:" in capsys.readouterr().err
    assert call(monkeypatch, "run", tmp_path / "log", "--", tmp_path / "fuzz_none") == 2
    assert "fuzz_none" in capsys.readouterr().err
    assert record.read_text() == "[]\n"
