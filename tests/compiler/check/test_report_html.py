"""fairy2i report: the page is self-contained, says what was measured, and works in a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export, quantize
from fairy2i_export.check.page.agreement import agreement
from fairy2i_export.check.page.charts import agreement_plot, cloud, heatmap, nice_ticks
from fairy2i_export.check.page.collect import constellation, place_of
from fairy2i_export.check.page.page import small_percent
from fairy2i_export.check.page.palette import DARK, LIGHT, SHADES, ramp, shade
from fairy2i_export.commands.tools import main
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.checkpoint import open_checkpoint
from runtime_models import CHECKPOINT, copy_of_stories, stories_folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", str(stories_folder()), "--against", str(CHECKPOINT), "-o", str(out), "--tokens", "60"]) == 0
    return out


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_light(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    elements = Elements(text)
    for tag, attributes in elements.found:
        assert tag not in ("link", "img", "iframe", "object"), tag
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "NaN" not in text
    assert ">nan" not in text


def test_every_layer_is_in_every_heat_map(page: Path) -> None:
    """Quantization, four kernel errors, information per code: the layer's name begins the tool tip."""
    elements = Elements(page.read_text(encoding="utf-8"))
    tips = [str(attributes.get("data-tip", "")) for tag, attributes in elements.found if tag == "i"]
    nodes = read_nodes(stories_folder() / "model.onnx")
    assert len(nodes) == 36
    for node in nodes:
        assert sum(tip.startswith(node.name + "\n") for tip in tips) == 6, node.name


def test_the_quantization_errors_are_those_of_the_weights(page: Path) -> None:
    text = Elements(page.read_text(encoding="utf-8"))
    tips = {
        str(a["data-tip"]).split("\n")[0]: str(a["data-tip"])
        for _, a in text.found
        if "after stage" in str(a.get("data-tip"))
    }
    checkpoint = open_checkpoint(CHECKPOINT)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.4.mlp.down_proj", "lm_head"):
        weight = checkpoint.read(f"{name}.weight").astype(np.float64)
        expected = []
        for stages in (1, 2):
            q = quantize(weight, stages, row_multiplier="rms")
            expected.append(np.linalg.norm(weight - q.dequantize("none")) / np.linalg.norm(weight))
        assert f"after stage 1: {100 * expected[0]:.1f} %, 2: {100 * expected[1]:.1f} %" in tips[name]


def test_the_page_names_what_it_shows(page: Path) -> None:
    text = Elements(page.read_text(encoding="utf-8")).text
    for heading in ("What the weights became", "What the kernels add", "How the codes are used", "Where the bytes are"):
        assert heading in text
    assert "Once upon a time" in text
    assert "16 values that 2 stages" in text
    assert "fairy2i.source_sha256" in text
    assert "stories260K-fairy2i-w2" in text


def test_names_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)<"
    folder = copy_of_stories(tmp_path / evil)
    out = tmp_path / "report.html"
    assert main(["report", str(folder), "--against", str(CHECKPOINT), "-o", str(out), "--tokens", "8"]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text


def test_other_stages_kept_layers_and_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    source = make_checkpoint(tmp_path / "source")
    export(source, tmp_path / "model", stages=3, exclude=["*.1.mlp.*"], lm_head="int8")
    monkeypatch.setattr("fairy2i_export.check.page.collect.torch_is_installed", lambda: False)
    (tmp_path / "words.txt").write_text("w5 w6 w7 w8 w9 w10")
    out = tmp_path / "report.html"
    arguments = ["report", str(tmp_path / "model"), "--against", str(source), "-o", str(out)]
    assert main([*arguments, "--text", str(tmp_path / "words.txt")]) == 0
    assert "exact mode instead" in capsys.readouterr().out
    assert main([*arguments, "--text", str(tmp_path / "words.txt"), "--no-torch"]) == 0
    assert "note" not in capsys.readouterr().out  # it was asked for
    text = Elements(out.read_text(encoding="utf-8")).text
    assert "64 values that 3 stages" in text
    assert "against exact mode" in text


def test_stages_that_were_found_together_are_not_taken_apart(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", num_hidden_layers=1)
    (tmp_path / "words.txt").write_text("w5 w6 w7 w8 w9 w10")
    pages = {}
    for quantizer in ("greedy", "joint"):
        export(source, tmp_path / quantizer, stages=2, quantizer=quantizer)
        out = tmp_path / f"{quantizer}.html"
        arguments = ["report", str(tmp_path / quantizer), "--against", str(source), "-o", str(out), "--no-torch"]
        assert main([*arguments, "--text", str(tmp_path / "words.txt")]) == 0
        pages[quantizer] = out.read_text(encoding="utf-8")
    nodes = len(read_nodes(tmp_path / "joint" / "model.onnx"))
    assert pages["greedy"].count("after stage 1: ") == nodes
    assert "found together" not in pages["greedy"]
    assert "after stage" not in pages["joint"]
    assert pages["joint"].count("all 2 stages together") == nodes
    assert "Codes of all stages were found together" in pages["joint"]
    assert "calibration" not in pages["joint"]


def test_a_changed_source_is_noted(tmp_path: Path, capsys) -> None:
    source = tmp_path / "source"
    shutil.copytree(CHECKPOINT, source)
    (source / "config.json").write_text((source / "config.json").read_text() + " \n")
    arguments = ["report", str(stories_folder()), "--against", str(source), "-o", str(tmp_path / "r.html"), "--tokens", "8"]
    assert main(arguments) == 0
    assert "exported from other files" in capsys.readouterr().out
    assert "exported from other files" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], "Missing option '--against'"),
        (["/absent", "--against", "{source}"], "/absent does not exist"),
        (["{}", "--against", "/absent"], "no such file or directory"),
        (["{}", "--against", "{source}", "--tokens", "1"], "--tokens: expected at least 2"),
        (["{}", "--against", "{source}", "--text", "/absent"], "--text /absent"),
        (["{}", "--against", "{source}", "-o", "{tmp}"], "found a folder; try"),
        (["{}", "--against", "{source}", "-o", "{tmp}/no/r.html"], "does not exist"),
        (["{}", "--against", "{other}", "-o", "{tmp}/r.html"], "expected shape"),
    ],
)
def test_mistakes_give_one_message_and_no_file(capsys, tmp_path_factory, arguments, message) -> None:
    tmp = tmp_path_factory.mktemp("mistakes")
    other = make_checkpoint(tmp / "other") if "{other}" in arguments else ""
    given = [argument.format(stories_folder(), source=CHECKPOINT, tmp=tmp, other=other) for argument in arguments]
    assert main(["report", *given]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp.iterdir() if path.name != "other"] == []


PROBE = """
<script>
const cell = document.querySelector(".heat i[data-tip]");
const box = cell.getBoundingClientRect();
cell.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: box.x + 3, clientY: box.y + 3}));
const tip = document.getElementById("tip");
const shown = [...document.querySelectorAll(".panel")].filter((panel) => panel.offsetHeight > 0).length;
document.title = [document.documentElement.scrollWidth <= innerWidth, !tip.hidden && tip.textContent === cell.dataset.tip,
  shown, getComputedStyle(cell).backgroundColor !== "rgba(0, 0, 0, 0)"].join(" ");
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the window, pointing shows the tool tip, one tab is open, no script fails."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", f"file://{probed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    assert title[1] == "true true 1 true"
    assert "Uncaught" not in done.stderr


def test_ticks_and_shades() -> None:
    assert nice_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0, 0.873, 3) == pytest.approx([0, 0.5, 1.0])
    assert nice_ticks(3, 3)[0] <= 3 <= nice_ticks(3, 3)[-1]
    for low, high in ((0, 191), (-2.5, 7), (1e-9, 3e-9), (0, 4095)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-12
        assert ticks[-1] >= high - 1e-12
        assert 3 <= len(ticks) <= 9
    assert [shade(value, 1, 3) for value in (0, 1, 3, 4, float("nan"))] == [0, 0, SHADES - 1, SHADES - 1, SHADES - 1]
    for stops in (LIGHT, DARK):
        colours = ramp(stops)
        assert (colours[0], colours[-1]) == (stops[0], stops[-1])
        assert len(set(colours)) == SHADES
    assert [small_percent(value) for value in (0.0087, 0.0300, 3.04e-7)] == ["0.87 %", "3.00 %", "3.0e-7"]


def test_places_of_layers() -> None:
    assert place_of("model.layers.12.mlp.up_proj") == (12, "up_proj")
    assert place_of("model.layers.0.self_attn.q_proj") == (0, "q_proj")
    assert place_of("lm_head") == (None, "lm_head")


def test_constellations_are_the_weights_and_their_levels() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    for stages, rows in ((1, "none"), (2, "rms"), (3, "none"), (4, "none")):
        q = quantize(weight, stages, row_multiplier=rows)
        picture = constellation("x", weight, q)
        bare = type(q)(q.codes, q.scales, q.profile)  # without multipliers
        dense = bare.dequantize("none").astype(np.float64)
        n, m = q.n, q.m
        u = (dense[:n, :m] + dense[n:, m:]) / 2 + 1j * (dense[n:, :m] - dense[:n, m:]) / 2
        assert picture.shares.sum() == pytest.approx(1)
        assert len(picture.levels) == 4**stages
        for level, share in zip(picture.levels, picture.shares, strict=True):
            assert np.mean(np.abs(u - level) < 1e-5) == pytest.approx(share, abs=1e-9)
        assert len(picture.cloud) == n * m
        assert cloud(picture, "x").dots.count("M") > 0.7 * n * m


def test_agreement_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], np.float32))
    result = agreement(found, reference, np.array([0, 1, 2]), lambda ids: "".join("abc"[i] for i in ids), "torch")
    assert result.tokens == ["a", "b", "c"]
    np.testing.assert_allclose(result.kl, [0.25 * np.log(2), 0, 0], atol=1e-7)
    assert result.same.tolist() == [False, True, True]
    assert result.best[0] == ("b", "a")
    np.testing.assert_allclose(np.exp(-result.loss), [[0.5, 0.25], [0.6, 0.6]], rtol=1e-5)
    plot = agreement_plot(result)
    assert [tick.label for tick in plot.x_ticks] == ["0", "1", "2"]  # positions are whole numbers
    assert [len(series.marks) for series in plot.series] == [0, 2, 1]


def test_heat_maps_mark_what_is_beyond_the_limit() -> None:
    class Layer:
        def __init__(self, depth: int | None, module: str, value: float) -> None:
            self.depth, self.module, self.value = depth, module, value
            self.facts = type("Facts", (), {"name": f"{depth}.{module}"})

    layers = [Layer(0, "q", 0.1), Layer(1, "q", 0.2), Layer(0, "up", 0.3), Layer(None, "lm_head", float("nan"))]
    found = heatmap("x", layers, lambda layer: layer.value, lambda value: f"{value:.1f}", limit=0.25)  # type: ignore[arg-type]
    assert found.columns == ["0", "1"]
    assert [name for name, _ in found.rows] == ["q", "up", "lm_head"]
    marks = [[cell and cell.over for cell in cells] for _, cells in found.rows]
    assert marks == [[False, False], [True, None], [None, True]]  # not a number is beyond every limit
    assert found.over == 2


def test_it_replaces_nothing_but_an_earlier_page(tmp_path: Path) -> None:
    from fairy2i_export.commands.report import write_file
    from fairy2i_export.errors import OutputError

    page, other, fifo = tmp_path / "page.html", tmp_path / "model.onnx", tmp_path / "pipe"
    write_file(page, "\n<!DOCTYPE html>\n<title>x in Fairy2i</title>")
    write_file(page, "<!DOCTYPE html>\n<p>2</p>")
    assert "2" in page.read_text()
    other.write_bytes(b"weights")
    os.mkfifo(fifo)
    for path in (other, fifo):
        with pytest.raises(OutputError, match="exists and is no report that could be replaced"):
            write_file(path, "<!DOCTYPE html>")
    assert other.read_bytes() == b"weights"
    assert fifo.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "page.html", "pipe"]
