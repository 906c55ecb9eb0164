"""Documents, blocks, labels and the order of training; schedules and losses."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("datasets")

import torch
from torch.nn import functional

from fairy2i_export.source.hub import open_source
from fairy2i_export.train.data.blocks import ShuffledBlocks, StreamedBlocks, stored_blocks
from fairy2i_export.train.data.documents import open_documents
from fairy2i_export.train.data.packing import IGNORED, Encoder, open_encoder
from fairy2i_export.train.loop import distill
from fairy2i_export.train.loop.distill import losses
from fairy2i_export.train.loop.schedule import SCHEDULES, Shape
from fairy2i_export.train.recipe import SCHEDULES as SCHEDULE_NAMES
from fairy2i_export.train.recipe import Bos, Recipe
from training_helpers import SEPARATOR, make_recipe, write_text


def encoder_of(recipe: Recipe, bos: Bos = "none") -> Encoder:
    return open_encoder(open_source(recipe.source), 210, bos, recipe.eos)


@pytest.mark.parametrize(
    ("bos", "expected"),
    [
        ("none", [[3, 4, 5, 2, 6], [7, 2, 8, 9, 10]]),
        ("document", [[1, 3, 4, 5, 2], [1, 6, 7, 2, 1], [8, 9, 10, 11, 2]]),
        ("block", [[1, 3, 4, 5, 2], [1, 6, 7, 2, 8], [1, 9, 10, 11, 2]]),
    ],
)
def test_packing(bos: Bos, expected: list[list[int]], tmp_path: Path) -> None:
    encoder = encoder_of(make_recipe(tmp_path), bos)
    blocks = list(encoder.blocks(["w3 w4 w5", "w6 w7", "", "w8 w9 w10 w11"], 5))
    assert [block.tolist() for block in blocks] == expected


def test_labels_leave_out_the_token_after_a_document(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    labels = encoder_of(recipe).labels(np.array([[3, 4, 2, 6, 2, 2, 7]]))
    assert labels.tolist() == [[IGNORED, 4, 2, IGNORED, 2, IGNORED, IGNORED]]
    labels = encoder_of(recipe, "document").labels(np.array([1, 3, 2, 1, 6]))
    assert labels.tolist() == [IGNORED, 3, 2, IGNORED, 6]


def test_eos_by_text_or_number(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    assert encoder_of(replace(recipe, eos="w9")).eos == 9
    assert encoder_of(replace(recipe, eos="11")).eos == 11


def test_the_same_documents_from_every_kind_of_file(tmp_path: Path) -> None:
    from datasets import Dataset

    recipe = make_recipe(tmp_path)
    documents = Path(recipe.data[0]).read_text().split(SEPARATOR)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in documents))
    Dataset.from_dict({"body": documents}).to_parquet(str(tmp_path / "table.parquet"))
    for name, separator in (("train.txt", SEPARATOR), ("lines.jsonl", None), ("table.parquet", None)):
        rows = open_documents([str(tmp_path / name)], "text" if separator else "body", separator)
        assert [row["text"] for row in rows] == documents, name


def test_long_texts_are_cut_at_separators_wherever_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairy2i_export.train.data import documents

    path = tmp_path / "text.txt"
    path.write_text("eins<|end|>zwei\r\nzwei<|end|>  <|end|>drei", encoding="utf-8", newline="")
    for chunk in (1, 3, 8, 100):
        monkeypatch.setattr(documents, "_CHUNK", chunk)
        found = [row["text"] for row in documents._read_text(str(path), SEPARATOR)]
        assert found == ["eins", "zwei\r\nzwei", "drei"]


def test_stored_blocks_are_reused_until_the_text_changes(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    encoder = encoder_of(recipe)
    made: list[int] = []
    directory = tmp_path / "data"
    first = stored_blocks(directory, "train", recipe.data, recipe, encoder, 32, progress=made.append)
    assert len(made) == len(first) > 30
    assert first.dtype == np.uint16
    again = stored_blocks(directory, "train", recipe.data, recipe, encoder, 32, progress=made.append)
    assert len(made) == len(first)
    np.testing.assert_array_equal(first, again)
    write_text(tmp_path / "train.txt", 80, seed=1)
    assert len(stored_blocks(directory, "train", recipe.data, recipe, encoder, 32)) > len(first)
    assert len(stored_blocks(directory, "train", recipe.data, recipe, encoder, 32, limit=3)) == 3


def test_order_is_shuffled_and_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    encoder = encoder_of(make_recipe(tmp_path))
    blocks = np.arange(70, dtype=np.uint16).reshape(7, 10)

    def order(seed: int, places: range) -> list[int]:
        dataset = ShuffledBlocks(blocks, encoder, 21, seed)
        return [int(dataset[place]["input_ids"][0]) // 10 for place in places]

    whole = order(5, range(21))
    assert order(5, range(20, -1, -1)) == whole[::-1]
    rounds = [whole[:7], whole[7:14], whole[14:]]
    assert all(sorted(part) == list(range(7)) for part in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert order(6, range(21)) != whole


def test_streaming_repeats_with_the_seed_and_shuffles(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, streaming=True)
    encoder = encoder_of(recipe)
    count = len(stored_blocks(tmp_path / "data", "train", recipe.data, recipe, encoder, 32))

    def stream(recipe: Recipe) -> list[list[int]]:
        return [item["input_ids"].tolist() for item in islice(StreamedBlocks(recipe, encoder, 32), 2 * count)]

    first = stream(recipe)
    assert stream(recipe) == first
    assert first[:count] != first[count:]  # another order in the second round
    assert stream(replace(recipe, seed=1)) != first
    in_file = next(encoder.blocks((row["text"] for row in open_documents(recipe.data, "text", SEPARATOR)), 32))
    assert first[0] != in_file.tolist()


def test_published_schedule() -> None:
    assert set(SCHEDULES) == set(SCHEDULE_NAMES)
    shape = Shape(30_000)
    for step, factor in ((0, 0), (150, 0.5), (300, 1), (7_999, 1), (9_000, (1 + 0.1667) / 2), (10_000, 0.1667),
                         (18_999, 0.1667), (19_500, (0.1667 + 0.0333) / 2), (20_000, 0.0333), (29_999, 0.0333)):  # fmt: skip
        assert SCHEDULES["paper"](step, shape) == pytest.approx(factor, abs=1e-6), step
    assert SCHEDULES["paper"](500, Shape(3_000)) == SCHEDULES["paper"](5_000, shape)


def test_other_schedules() -> None:
    shape = Shape(100, warmup=9, decay=0.2, minimum=0.1)
    wsd = [SCHEDULES["wsd"](step, shape) for step in range(101)]
    assert wsd[0] == pytest.approx(0.1)
    assert wsd[9:80] == [1.0] * 71
    assert wsd[90] == pytest.approx(0.55)
    assert wsd[100] == pytest.approx(0.1)
    cosine = [SCHEDULES["cosine"](step, shape) for step in range(101)]
    assert cosine[9] == 1.0
    assert cosine[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(cosine[9:]))
    assert SCHEDULES["constant"](99, shape) == 1.0


def test_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "_AT_ONCE", 21)  # three rows at a time
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[IGNORED, 1, IGNORED, 3, 4], [IGNORED, 0, 6, 2, 1]])
    wanted = labels[:, 1:] != IGNORED
    student.requires_grad_()
    for alpha, t in ((0.0, 1.0), (1.0, 1.0), (0.3, 1.0), (0.3, 2.5), (1.0, 1000.0)):
        entropy = functional.cross_entropy(student[:, :-1][wanted], labels[:, 1:][wanted], reduction="sum")
        p, q = (functional.log_softmax(logits[:, :-1][wanted] / t, -1) for logits in (teacher, student))
        divergence = t * t * functional.kl_div(q, p, log_target=True, reduction="sum")
        expected = (1 - alpha) * entropy + alpha * divergence
        found = losses(student, labels, teacher, alpha, t)
        assert int(found.predictions) == 7
        torch.testing.assert_close(found.entropy, entropy)
        torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-2 if t == 1000 else 1e-5)
        if alpha > 0:
            torch.testing.assert_close(found.divergence, divergence, rtol=1e-5, atol=1e-2 if t == 1000 else 1e-5)
        gradients = [torch.autograd.grad(3 * loss, student)[0] for loss in (found.loss, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=2e-3 if t == 1000 else 1e-6)
        assert not gradients[0][:, -1].any()
    assert float(losses(student.detach(), labels, student.detach(), 1.0, 2.0).divergence) == pytest.approx(0, abs=1e-5)
    by_hand = 0.0
    for row in range(2):
        for place in range(1, 5):
            if labels[row, place] != IGNORED:
                by_hand -= float(torch.log_softmax(student.detach()[row, place - 1], -1)[labels[row, place]])
    assert float(losses(student.detach(), labels).loss) == pytest.approx(by_hand, rel=1e-6)
    # at a high temperature the gradient becomes that of half the squared distance of centred logits, over their number
    (gradient,) = torch.autograd.grad(losses(student, labels, teacher, 1.0, 1000.0).loss, student)
    difference = (student - teacher)[:, :-1][wanted]
    centred = difference - difference.mean(-1, keepdim=True)
    torch.testing.assert_close(gradient[:, :-1][wanted], centred / 7, rtol=0.02, atol=2e-3)
    # a student in 16 bits gets its gradient in 16 bits, of losses in 32
    half = student.detach().bfloat16().requires_grad_()
    whole = half.detach().float().requires_grad_()
    found, expected_losses = losses(half, labels, teacher, 0.5), losses(whole, labels, teacher, 0.5)
    torch.testing.assert_close(found.loss, expected_losses.loss)
    (rough,), (fine,) = torch.autograd.grad(found.loss, half), torch.autograd.grad(expected_losses.loss, whole)
    torch.testing.assert_close(rough, fine.bfloat16())
