"""fairy2i tune: what it tries, what it keeps, and what a session makes of it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from fairy2i_export.commands.tools import main
from fairy2i_runtime import core, load
from fairy2i_runtime.engine.threads import default_threads
from fairy2i_runtime.errors import Fairy2iWarning, OptionError
from fairy2i_runtime.measure.tune import ROWS, rounds_of_tuning, tune
from fairy2i_runtime.ops.tuning import keep_tuning, kept_tuning, machine_key, tuning_file
from runtime_models import stories_folder

PROMPT = [1, 5, 9, 300]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Settings are kept in the test's own folder."""
    monkeypatch.delenv("FAIRY2I_TUNING", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_command_keeps_what_it_finds_and_sessions_run_with_it(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    before = load(stories_folder(), threads=1).logits(PROMPT)
    assert main(["tune", str(stories_folder()), "--threads", "1", "--rounds", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(tuning_file()) == str(cache / "fairy2i" / "tuning.json")
    assert kept_tuning(1) == report["tuning"]
    assert kept_tuning(3) is None
    settings = dict(part.split("=") for part in report["tuning"].split())
    here = {kernel.isa for kernel in core.kernels() if kernel.family == "lut" and kernel.available}
    assert settings["lut"] in here
    assert int(settings["auto"]) in (0, *ROWS)
    assert "alone" not in settings  # there is one thread
    assert sum(trial["taken"] for trial in report["trials"] if trial["setting"].startswith("lut=")) == 1
    assert all(trial["seconds"] > 0 and len(trial["rounds"]) == 1 for trial in report["trials"])
    np.testing.assert_array_equal(load(stories_folder(), threads=1).logits(PROMPT), before)  # to the bit

    assert main(["tune", str(stories_folder()), "--threads", "1", "--forget"]) == 0
    assert kept_tuning(1) is None


def test_two_threads_choose_what_one_does_alone() -> None:
    found = tune(stories_folder(), threads=2, rounds=1)
    assert [part.partition("=")[0] for part in found.text.split()] == ["lut", "alone", "dot", "auto"]
    core.one_tile_layer("auto", tuning=found.text)  # the library takes it


def test_progress_is_told_for_every_round() -> None:
    rounds: list[None] = []
    tune(stories_folder(), threads=1, rounds=2, done=lambda: rounds.append(None))
    assert len(rounds) == rounds_of_tuning(2, 1)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert main(["tune", str(stories_folder()), "--threads", "1", "--rounds", "1", "--no-keep"]) == 0
    out = capsys.readouterr().out
    assert "settings for 1 threads: lut=" in out
    assert "not kept" in out
    assert not cache.exists()


def test_what_a_session_gets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that were kept; unless the environment has some, or an instruction set is named."""
    threads = default_threads()
    keep_tuning(threads, {"tuning": "lut=scalar auto=9"})
    keep_tuning(7, {"tuning": "auto=5"})
    assert main(["info", "--json"]) == 0
    tuning = json.loads(capsys.readouterr().out)["installation"]["library"]["tuning"]
    assert tuning["source"] == "fairy2i tune"
    assert re.fullmatch(r"lut=scalar dot=\w+ auto=9 alone=\d+", tuning["settings"])
    monkeypatch.setenv("FAIRY2I_TUNING", "alone=77")
    assert main(["info"]) == 0
    assert re.search(r"^  settings .* alone=77 \(of FAIRY2I_TUNING\)$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.delenv("FAIRY2I_TUNING")
    keep_tuning(threads, None)
    assert main(["info"]) == 0
    assert "(of the library)" in capsys.readouterr().out
    assert kept_tuning(7) == "auto=5"
    assert kept_tuning(7, "scalar") is None


def test_bench_tells_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    keep_tuning(1, {"tuning": "lut=scalar dot=scalar auto=9"})
    short = ["--prompt-tokens", "9", "--new-tokens", "2", "--repeat", "1", "--threads", "1", "--kernel", "auto", "--json"]
    assert main(["bench", str(stories_folder()), *short]) == 0
    ran = json.loads(capsys.readouterr().out)["configuration"]
    assert (ran["kernel"], ran["isa"], ran["prompt_kernel"], ran["prompt_isa"]) == ("lut", "scalar", "dot", "scalar")


def test_settings_that_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_tuning(1, {"tuning": "lut=fastest"})
    with pytest.raises(OptionError, match=r'unknown ISA "fastest".*fairy2i tune kept it'):
        load(stories_folder(), threads=1)
    load(stories_folder(), threads=1, isa="scalar")  # which it says nothing of
    monkeypatch.setenv("FAIRY2I_TUNING", "lut avx2")
    with pytest.raises(OptionError, match=r'expected lut=ISA, .* found "lut"'):
        load(stories_folder(), threads=1)


@pytest.mark.parametrize("content", ["{", "[]", '{"KEY": 3}', '{"KEY": {"tuning": 3}}', "\0"])
def test_a_damaged_file_is_as_none_and_written_anew(content: str) -> None:
    path = tuning_file()
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("KEY", machine_key(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Fairy2iWarning)
        assert kept_tuning(1) is None
    keep_tuning(1, {"tuning": "auto=3"})
    assert kept_tuning(1) == "auto=3"


def test_what_cannot_be_tuned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def error(*arguments: str) -> str:
        assert main(["tune", *arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "rounds: expected an integer from 1 to 1000, got 0" in error(str(stories_folder()), "--rounds", "0")
    assert "threads: expected" in error(str(stories_folder()), "--threads", "0")
    assert "not" in error(str(tmp_path / "nothing"))
    cache = tmp_path / "cache"
    cache.write_text("a file in the way")
    with pytest.raises(OptionError, match=f"cannot write {cache}"):
        keep_tuning(1, {"tuning": "auto=3"})
    monkeypatch.setenv("FAIRY2I_TUNING", "alone=1")
    assert "FAIRY2I_TUNING is set" in error(str(stories_folder()))
