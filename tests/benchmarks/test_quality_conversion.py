"""What conversions are measured with: the four texts, tasks made of a text, samples of text, the grid and its tables."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file

import fairy2i_export
import fairy2i_runtime
from conftest import ROOT
from export_helpers import make_checkpoint, write_tokenizer
from runtime_models import stories_folder

sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import marked
from conversion import ablation, heads, kernels, reports, tasks, texts
from conversion.cloze import CONTEXT_WORDS, CONTINUATION_WORDS, Item, continuations, last_words
from conversion.grid import CASES, STAGES_OFF
from conversion.samples import prose_part
from conversion.subjects import open_subject, sampling_of

from fairy2i_export import export
from fairy2i_runtime.measure.scoring import token_log_probs
from fairy2i_runtime.text.options import GenerationOptions
from fairy2i_runtime.text.tokenizer import Tokenizer

TALE = (ROOT / "examples/data/tinystories/tinystories_train_197k.txt").read_text(encoding="utf-8")


def float_checkpoint(path: Path, **changes: Any) -> Path:
    """A random model with a tokenizer."""
    source = make_checkpoint(path, dtype=np.float32, num_hidden_layers=1, **changes)
    write_tokenizer(source)
    return source


def words(count: int, seed: int = 0) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(3, 200, count))


def test_texts_are_the_stretches_that_are_promised(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    first, second = words(20_000), words(9_000, 1)
    found = texts.texts_of(tmp_path, first, second, None)
    assert list(found) == ["wiki-2k", "wiki-16k", "other"]
    ids = {text: Tokenizer.load(tmp_path).encode(text, add_special_tokens=False) for text in (first, second)}
    for name, text, begin, end in (
        ("wiki-2k", first, 0, 2_048),
        ("wiki-16k", first, 2_048, 18_432),
        ("other", second, 0, 8_192),
    ):
        windows = found[name].windows
        assert [token for window in windows for token in window.ids] == ids[text][begin:end]
        assert {len(window.ids) for window in windows} == {1_024}
        assert all(window.scored.all() for window in windows)
        assert found[name].denominator == 1_023 * len(windows)
    with pytest.raises(typer.BadParameter):
        texts.texts_of(tmp_path, words(18_431), None, None)


def test_a_checkpoint_and_its_export_are_measured_alike(tmp_path: Path) -> None:
    """Torch and onnxruntime agree on a model whose layers are stored as they are, whatever is asked of them."""
    source = float_checkpoint(tmp_path / "source")
    folder = export(source, tmp_path / "folder", backend="dense", stages=4, trained=True, lm_head="float").path
    subjects = open_subject(source, threads=1), open_subject(folder, "exact", 1)
    ids = subjects[0].tokenizer.encode(words(30))
    for subject in subjects:
        whole, end = subject.score(ids), subject.score(ids, 20)
        assert len(whole.log_probs) == 29
        assert end.log_probs == pytest.approx(whole.log_probs[19:], abs=1e-4)
        assert (end.greedy == whole.greedy[19:]).all()
    model = subjects[0].model  # type: ignore[attr-defined]
    import torch

    logits = model(torch.tensor([ids[:-1]])).logits[0].detach().numpy()
    assert subjects[0].score(ids).log_probs == pytest.approx(token_log_probs(logits, np.array(ids[1:])), abs=1e-5)
    # prompts of different lengths, written together, as transformers writes each alone
    prompts = [ids[:3], ids[5:12]]
    written = subjects[0].write(prompts, GenerationOptions.of(max_new_tokens=6, temperature=0.0))
    for prompt, answer in zip(prompts, written, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=6,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        assert answer == expected[0, len(prompt) :].tolist()
    assert sampling_of(source, 3, 7) == GenerationOptions.of(
        temperature=0.4, top_p=0.9, repetition_penalty=1.1, seed=3, max_new_tokens=7
    )


def test_continuations_are_the_words_that_follow() -> None:
    items = continuations(TALE, 25)
    flat = " ".join(TALE.split())
    assert len(items) == 25
    for item in items:
        assert len(item.context.split()) == CONTEXT_WORDS
        assert len(set(item.choices)) == 4
        assert {len(choice.split()) for choice in item.choices} == {CONTINUATION_WORDS}
        follows = [item.context + choice in flat for choice in item.choices]
        assert follows == [number == item.answer for number in range(4)]
        assert all(choice.strip() in flat for choice in item.choices)
    assert len({item.answer for item in items}) == 4
    assert continuations(TALE, 25) == items
    with pytest.raises(ValueError, match="words"):
        continuations("too short a text", 4)


def test_last_words_were_there_before() -> None:
    items = last_words(TALE, 30)
    flat = " ".join(TALE.split())
    assert len(items) == 30
    for item in items:
        (word,) = item.choices
        assert any(item.context + word + end in flat for end in ".!?")
        assert word.strip() in item.context
        assert word.startswith(" ")
    assert last_words("It was a dog . " * 3, 5) == []  # common, and too short a passage
    spaced = TALE.replace(".", " .")  # as WikiText is written
    assert last_words(spaced, 30)


class Oracle:
    """Knows a text by heart: what it has is likely, anything else is not."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.tokenizer: Any = self

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def score(self, ids: list[int], first: int) -> Any:
        known = bytes(ids).decode() in self.text
        size = len(ids) - first
        return texts_scores(np.full(size, -0.1 if known else -3.0), np.full(size, known))


def texts_scores(log_probs: Any, greedy: Any) -> Any:
    from fairy2i_runtime.measure.scoring import TokenScores

    return TokenScores(log_probs, greedy)


def test_tasks_score_what_they_should() -> None:
    knows: Any = Oracle(TALE)
    found = tasks.tasks_of(knows, TALE, 12)
    assert found["continuation"]["accuracy"] == found["continuation"]["per_byte"] == found["last word"]["accuracy"] == 1
    assert found["last word"]["perplexity"] == pytest.approx(np.exp(0.1))
    ignorant: Any = Oracle("nothing")
    assert tasks.tasks_of(ignorant, TALE, 12)["last word"]["accuracy"] == 0
    wrong = [Item("a", (" b", " c"), 1)]
    knows.text = "a b"
    assert tasks.right_continuations(knows, wrong)["accuracy"] == 0


def test_a_choice_is_scored_as_lm_eval_scores_it() -> None:
    subject = open_subject(stories_folder(), "exact", 1)
    scores = tasks.scored_choice(subject, "Once upon a time", " there was a cat")
    whole = subject.tokenizer.encode("Once upon a time there was a cat")
    begun = len(subject.tokenizer.encode("Once upon a time"))
    logits = subject.model.logits(whole[:-1])  # type: ignore[attr-defined]
    expected = token_log_probs(logits, np.array(whole[1:]))[begun - 1 :]
    assert scores.log_probs == pytest.approx(expected, abs=1e-5)


def test_parts_of_the_prose_are_all_of_it() -> None:
    text = "".join(f"line {number} {'x' * (number % 7)}\n" for number in range(100))
    parts = [prose_part(text, part, 3) for part in range(3)]
    assert "".join(parts) == text
    assert max(map(len, parts)) - min(map(len, parts)) < 60


def test_grid() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for bits in ("2", "3"):
        for stage in STAGES_OFF:
            (case,) = (case for case in CASES if case.name == f"{bits}-no-{stage}")
            assert case.arguments == ["--stages", bits, "--calibrate-without", stage]
    assert next(case for case in CASES if case.name == "2.25").arguments == ["--bits", "2.25"]


def test_ablation_converts_measures_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the exporter itself, with a model of one layer; the second call does nothing again."""
    source = float_checkpoint(tmp_path / "source")
    (tmp_path / "prose.txt").write_text("\n".join(words(300, seed) for seed in range(12)))
    (tmp_path / "wikitext.txt").write_text(words(400))
    monkeypatch.setattr(texts, "LENGTHS", {"wiki-2k": 96, "wiki-16k": 192, "other": 96})
    monkeypatch.setattr(texts.texts_of, "__defaults__", (48,))
    # the packages of this process, installed or not
    places = [str(Path(str(package.__file__)).parents[1]) for package in (fairy2i_export, fairy2i_runtime)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))

    def run() -> None:
        ablation.main(
            source, tmp_path / "work", prose=[tmp_path / "prose.txt"], samples=2, wikitext=tmp_path / "wikitext.txt",
            answers=None, only="2", extra=["--calibrate-tokens=192"], threads=1,
        )  # fmt: skip

    run()
    results = reports.results_of(tmp_path / "work")
    assert [(result["case"], result["sample"]) for result in results] == [("2", 0), ("2", 1)]
    for result in results:
        assert result["arguments"] == ["--stages", "2", "--calibrate-tokens=192"]
        assert result["bits"] > 2  # far more: small layers are mostly padding
        assert result["processor_seconds"] > 0
        assert result["peak_bytes"] > 1e7
        assert set(result["kernels"]) == {"exact", "lut"}
        assert result["kernels"]["exact"]["wiki-16k"]["scored"] == 188
    other_sample = [result["kernels"]["exact"]["wiki-2k"]["perplexity"] for result in results[:2]]
    assert other_sample[0] != other_sample[1]
    monkeypatch.setattr(ablation, "one_run", lambda *_: pytest.fail("done already"))
    monkeypatch.setattr(ablation, "open_subject", lambda *_, **__: pytest.fail("done already"))
    run()
    assert not (tmp_path / "work" / "2-0").exists()


def test_divergence_of_kernels_is_what_their_logits_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(float_checkpoint(tmp_path / "source"), tmp_path / "folder", stages=2, trained=True).path
    (tmp_path / "wikitext.txt").write_text(words(400))
    monkeypatch.setattr(texts, "LENGTHS", {"wiki-2k": 96, "wiki-16k": 192, "other": 96})
    monkeypatch.setattr(texts.texts_of, "__defaults__", (48,))
    kernels.main([folder], wikitext=tmp_path / "wikitext.txt", conversations=None, kernels="lut,exact", threads=1)
    heading, _, lut, exact = capsys.readouterr().out.splitlines()
    assert heading == "| model | kernel | wiki-2k |"
    assert exact == "| folder | exact | 0.00 |"
    ids = texts.texts_of(folder, (tmp_path / "wikitext.txt").read_text(), None, None)["wiki-2k"].windows
    p, q = (
        np.concatenate([fairy2i_runtime.load(folder, kernel=kernel).logits(window.ids) for window in ids])
        for kernel in ("exact", "lut")
    )
    p, q = (x - np.log(np.exp(x.astype(np.float64)).sum(1, keepdims=True)) for x in (p, q))
    assert float(lut.split("|")[3]) == pytest.approx(1e3 * float((np.exp(p) * (p - q)).sum(1).mean()), abs=0.006)
    assert float(lut.split("|")[3]) > 0


def result(case: str, group: str, sample: int, exact: float, lut: float) -> dict[str, Any]:
    figures = {kernel: {"wiki-2k": {"perplexity": value}, "answers": {"perplexity": value / 10}} for kernel, value in
               (("exact", exact), ("lut", lut))}  # fmt: skip
    return {
        "case": case, "label": f"{case} stages", "group": group, "sample": sample, "arguments": ["--stages", case], "bits": 2.05,
        "seconds": 60.0 + 60 * sample, "processor_seconds": 90.0, "peak_bytes": 2e9, "model_bytes": 9e7, "kernels": figures,
    }  # fmt: skip


def test_tables(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for sample, exact in enumerate((30.0, 32.0)):
        (work / f"2-{sample}.json").write_text(json.dumps(result("2", "bits", sample, exact, exact * 1.01)))
    (work / "2-no-tuning-0.json").write_text(json.dumps({**result("2", "ablation", 0, 40.0, 41.0), "case": "2-no-tuning"}))
    (work / "float.json").write_text(
        json.dumps({"case": "float", "texts": {"wiki-2k": {"perplexity": 17.5}, "answers": {"perplexity": 2.0}}})
    )
    document = tmp_path / "doc.md"
    places = ("conversion-bits", "conversion-kernels", "conversion-ablation")
    document.write_text("".join(f"# {name}\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n" for name in places))
    reports.tables(work, into=document)
    text = document.read_text()
    assert "old" not in text
    assert text.count("after") == 3
    assert "| float |  | 17.50 | 2.00 | 1 |  |  |  |  |" in text
    assert "| 2 stages | 2.05 | 31.00 ± 1.41 | 3.10 ± 0.14 | 1.55 ± 0.07 | 1.5 ± 0.7 | 1.5 ± 0.0 | 2.0 | 90 |" in text
    assert "| 2 stages | lut | +1.00% (worst +1.00%) |" in text
    assert "| 2 stages | 2 | 2.05 | 40.00 |" in text
    again = document.read_text()
    reports.tables(work, into=document)
    assert document.read_text() == again
    with pytest.raises(typer.BadParameter, match="no place"):
        marked.put_blocks(document, {"elsewhere": []})
    assert document.read_text() == again


def test_docs_have_the_places() -> None:
    text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    for name in ("bits", "kernels", "ablation", "speech", "tasks", "types"):
        assert f"<!-- conversion-{name} -->" in text
        assert f"<!-- /conversion-{name} -->" in text


def test_forms_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Made and measured once, timed when asked for; ratios are to the first form."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = float_checkpoint(tmp_path / "source")
    (source / "tokenizer_config.json").write_text("{}")
    for name in ("text", "wikitext", "tale"):
        (tmp_path / name).write_text(words(3000))
    export(source, tmp_path / "converted", calibrate=[tmp_path / "text"], calibrate_tokens=300, stages=2, jobs=1)
    monkeypatch.setattr(texts, "LENGTHS", {"wiki-2k": 96, "wiki-16k": 96, "other": 96})
    monkeypatch.setattr(texts.texts_of, "__defaults__", (48,))
    monkeypatch.setattr(heads, "NEW", 4)
    given: dict[str, Any] = {
        "work": tmp_path / "work",
        "calibrate": [tmp_path / "text"],
        "calibrate_tokens": 300,
        "other": tmp_path / "tale",
        "answers": None,
        "forms": "int8,3 stages,2 stages",
        "threads": 1,
    }
    heads.main(source, tmp_path / "converted", **given)
    first = json.loads((tmp_path / "work" / "heads.json").read_text())
    assert list(first) == ["int8", "3 stages", "2 stages"]
    assert first["2 stages"]["bytes"] < first["3 stages"]["bytes"]
    assert "not measured" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/model.onnx")}
    monkeypatch.setattr(heads, "measured", lambda *_: pytest.fail("measured again"))
    heads.main(source, tmp_path / "converted", **given, rounds=3)
    second = json.loads((tmp_path / "work" / "heads.json").read_text())
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/model.onnx")}
    assert second["int8"]["decode"] == [1.0, 1.0, 1.0]
    assert len(second["3 stages"]["decode"]) == 3
    for form, result in first.items():
        assert second[form]["texts"] == result["texts"]
    assert "| 2 stages |" in capsys.readouterr().out


def test_weighted_rows_of_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The float head is the one without loss, and predictions of weighted rows are nearer to it than those of others."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from conversion import head_rows

    source = float_checkpoint(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    head = weights["lm_head.weight"]
    head[: len(head) // 2] *= 2  # likely tokens and unlikely ones: a row of each makes a complex one
    head[len(head) // 2 :] /= 2
    save_file(weights, source / "model.safetensors")
    for name in ("text", "other"):
        (tmp_path / name).write_text(words(3000, seed=len(name)))
    monkeypatch.setattr(head_rows, "WINDOW", 48)
    head_rows.main(
        source, calibrate=[tmp_path / "text"], text=[tmp_path / "other"], calibrate_tokens=1200, tokens=480, stages="2"
    )
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["float", "2 stages, rows alike", "2 stages, rows weighted"]
    nats = [float(row[2]) for row in rows[2:]]
    assert nats[0] == 0 < nats[2] < nats[1]
    with pytest.raises(typer.BadParameter, match="expected texts of 960 tokens"):
        head_rows.windows_of(source, words(500), 960)
