"""The tables of docs/raspberry-pi.md: which model fits which board, and what the runtime takes on disk."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import boards
import footprint
from exporter import synthetic_checkpoint as synthetic
from fairy2i_export.compile.dry_run import dry_run


def test_a_hollow_checkpoint_takes_no_room(tmp_path: Path) -> None:
    config = synthetic.llama_config(layers=2, hidden=256, inner=512, heads=4, vocab=4000)
    for name, hollow in (("full", False), ("hollow", True)):
        synthetic.write_checkpoint(tmp_path / name, config, hollow=hollow)
    files = [next((tmp_path / name).glob("*.safetensors")) for name in ("full", "hollow")]
    assert files[0].stat().st_size == files[1].stat().st_size > 4_000_000
    assert files[1].stat().st_blocks * 512 < 200_000
    full, hollow_run = (dry_run(tmp_path / name, tmp_path / "out", stages=2) for name in ("full", "hollow"))
    assert full.device == hollow_run.device


def test_the_longest_context_is_that_of_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two estimates give all others: compared with one for every context, in memory that only some have room for."""
    config = synthetic.llama_config(layers=4, hidden=512, inner=1024, heads=8, vocab=4000)
    config["max_position_embeddings"] = max(boards.CONTEXTS)
    synthetic.write_checkpoint(tmp_path / "source", config, hollow=True)
    runs = {
        context: dry_run(tmp_path / "source", tmp_path / "out", stages=2, context_length=context, **boards.OPTIONS)
        for context in boards.CONTEXTS
    }
    totals = sorted(run.device.total for run in runs.values())
    assert len(set(totals)) == len(boards.CONTEXTS)
    sizes = [size // 2**20 for size in (totals[0] - 2**20, *(total + 2**20 for total in totals))]
    monkeypatch.setattr(boards, "SYSTEM_BYTES", 0)
    monkeypatch.setattr(boards, "MEMORY_MB", sizes)
    row = boards.memory_row("some", 2, runs[1024], runs[2048])
    expected = [max((c for c, run in runs.items() if run.device.total <= size * 2**20), default=0) for size in sizes]
    assert [0 if cell == "–" else int(cell.replace(",", "")) for cell in row[4:]] == expected
    assert expected[0] == 0
    assert len(set(expected)) > 3


def test_the_page_has_what_the_script_says(tmp_path: Path) -> None:
    name = "SmolLM2-135M"
    config = synthetic.llama_config(**synthetic.SHAPES[name])
    config["max_position_embeddings"] = max(boards.CONTEXTS)
    synthetic.write_checkpoint(tmp_path / "source", config, hollow=True)
    some, more = (
        dry_run(tmp_path / "source", tmp_path / "out", stages=2, context_length=context, **boards.OPTIONS)
        for context in (1024, 2048)
    )
    page = (ROOT / "docs" / "raspberry-pi.md").read_text(encoding="utf-8")
    for row in (boards.memory_row(name, 2, some, more), boards.speed_row(name, 2, config, some)):
        assert f"| {' | '.join(row)} |" in page
    # by hand: 2 bits of every linear weight, the int4 head with a float32 scale per 32, and some norms and tables
    linear = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)
    head = 49152 * 576 * (4 + 1) // 8
    cache = 2 * 30 * 3 * 64 * 1024
    assert boards.bytes_per_token(some) == pytest.approx(linear / 4 + head + cache, rel=0.02)


def test_wheels_are_added_up(tmp_path: Path) -> None:
    for name, content in (("big_one", 5_000_000), ("Small.One", 1_000), ("other", 2_000)):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("x.py", bytes(content))
    lines = footprint.wheel_table(tmp_path, {"big-one", "small-one"}).splitlines()
    assert lines[2].startswith("| big-one | ")
    assert lines[2].endswith(" | 5.00 | yes |")
    assert lines[3].startswith("| **less than 3 MB each**: 2 |")
    assert lines[4].startswith("| **all**: 3 |")
    assert lines[5].startswith("| **all that is imported**: 2 |")
    assert "| 5.0 |" in lines[5]
    with pytest.raises(SystemExit, match="expected wheels, found none"):
        footprint.wheel_table(tmp_path / "none", None)
