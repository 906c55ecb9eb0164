"""Tables on narrow terminals: whatever a wide one shows is there."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from conftest import ROOT
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main
from fairy2i_runtime.commands.display import show_bench
from fairy2i_runtime.commands.tables import print_table
from runtime_models import stories_folder

MODEL = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
TEXT = ROOT / "examples" / "data" / "tinystories" / "tinystories_sample.txt"
WIDTHS = (30, 40, 60, 80)


def printed(table: Table, width: int) -> str:
    out = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(out, table)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def two_rows() -> Table:
    table = Table(title="some \\[numbers]", box=SIMPLE)
    for heading in ("layer", "N x K", "bits/\nweight", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("model.layers.0.self_attn.q_proj", "4096x11008", "2.002", "45,088,768")
    table.add_section()
    table.add_row("lm_head", "32000x4096", "", "131,072,000")
    return table


def test_a_wide_terminal_gets_a_table() -> None:
    lines = [line.split() for line in printed(two_rows(), 100).splitlines()]
    assert ["model.layers.0.self_attn.q_proj", "4096x11008", "2.002", "45,088,768"] in lines


def test_a_narrow_one_gets_paragraphs() -> None:
    assert printed(two_rows(), 40).splitlines() == [
        "some [numbers]",
        "layer model.layers.0.self_attn.q_proj",
        "  N x K 4096x11008, bits/weight 2.002,",
        "  bytes 45,088,768",
        "",
        "layer lm_head",
        "  N x K 32000x4096, bytes 131,072,000",
        "",
    ]


def test_columns_share_what_room_there_is() -> None:
    table = Table(box=SIMPLE, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("quantization error", "12.5% mean, 31.4% worst (model.layers.11.self_attn.o_proj)")
    for width in range(20, 100):
        assert words(printed(table, width)) == {
            *("quantization", "error", "12.5%", "mean", "31.4%", "worst", "model.layers.11.self_attn.o_proj")
        }


def run(arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    program = export_main if arguments[0] == "export" else main
    assert program(arguments[1:] if arguments[0] == "export" else arguments) == 0
    return capsys.readouterr().out


def words(text: str) -> set[str]:
    """Numbers, names and whatever else is set apart by blanks; not the time that something took."""
    text = re.sub(r"time\W+[\d.]+ s|peak RAM\W+[\d.]+ MB", "", text)
    text = re.sub(r"[\u2500-\u257f]", " ", text).replace("bits/weight", "bits/ weight")  # frames; a folded heading
    return {word.strip(":,()") for word in text.split()} - {""}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{}"],
        ["info", "{}"],
        ["verify", "{}", "--all"],
        ["ppl", "{}", "--text", str(TEXT)],
        ["export", str(MODEL), "-o", "{out}", "--dry-run"],
        ["export", str(MODEL), "-o", "{out}"],
        ["export", "{}/model.onnx", "-o", "{out}", "--dry-run"],
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-1:])[-20:] if isinstance(arguments, list) else None,
)
def test_every_command_shows_all_at_every_width(
    arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [part.format(stories_folder(), out=tmp_path / "out") for part in arguments]
    wide = run(arguments, 200, monkeypatch, capsys)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    narrow = run(arguments, width, monkeypatch, capsys)
    assert "…" not in narrow
    assert words(wide) == words(narrow)
    numbers = [word for word in words(wide) if re.search(r"\d", word)]
    assert len(numbers) > 5


@pytest.mark.parametrize("width", WIDTHS)
def test_bench_shows_all_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"mean": 30336.04, "standard_deviation": 4966.51, "min": 26824.1, "max": 33847.8}
    seconds = {"mean": 0.0043, "standard_deviation": 0.0007, "min": 0.0038, "max": 0.0048}
    report = {
        "model": "a/model",
        "machine": {"processor": "AMD EPYC", "logical_processors": 2, "platform": "Linux x86_64"},
        "configuration": {
            "kernel": "lut",
            "isa": "avx512",
            "prompt_kernel": "dot",
            "prompt_isa": "avx512",
            "threads": 2,
            "onnxruntime": "1.24.1",
            "repeat": 5,
            "prompt_tokens": 128,
            "new_tokens": 64,
        },
        "memory_bytes": {"peak": 79_500_000, "resident": 79_400_000, "mapped": 46_600_000, "private": 32_900_000},
        "prompt_tokens_per_second": rates,
        "decode_tokens_per_second": {**rates, "standard_deviation": None},
        "first_token_seconds": seconds,
        "cold_first_token_seconds": 0.0362,
        "load_seconds": 0.015,
        "start_seconds": 0.253,
    }
    shown = []
    for columns in (200, width):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_bench(report)
        shown.append(capsys.readouterr().out)
    assert words(shown[0]) == words(shown[1])
    assert {"30,336.0", "4,966.5", "26,824.1", "33,847.8", "4.3", "0.7", "79.5", "36.2"} <= words(shown[1])


@pytest.mark.parametrize("columns", ["0", "000", "-1", "wide", "\N{SUPERSCRIPT TWO}", "9" * 30, ""])
def test_columns_that_are_no_width_count_as_unknown(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(stories_folder())]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(stories_folder())]) == 0
    assert capsys.readouterr().out == expected
