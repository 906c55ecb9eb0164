"""The judge of answers, what is scored of conversations, and the page of answers side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from runtime_models import chat_folder, stories_folder

sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

from conversion.subjects import open_subject, sampling_of
from speech import blind
from speech.answers import DATA, ENGLISH, answers_of, judged, kept_answers, make_judge
from speech.dialogue import answer_windows
from speech.judge import PAIR_GAIN, Judge, is_looping

from fairy2i_runtime import load
from fairy2i_runtime.measure.scoring import token_log_probs

SPEECH = (
    "The sea is wide and deep, and many animals live in it. People sail on the sea in ships, and some of them catch fish. "
    "When the wind is strong, the waves are high. In the evening the boats come back to the harbour, and the fish are sold."
)
SALAD = (
    "sea of the in wide come fish it strong harbour are deep when live sold the the boats some evening on many back waves"
)
STRANGE = (
    "Der Wind blies über das Meer und die Schiffe kamen am Abend zurück in den kleinen Hafen von Bremen, wo wir wohnten."
)


@pytest.mark.parametrize(
    ("text", "kind", "verdict"),
    [
        (SPEECH, "", "fine"),
        ("In the evening the boats come back. When the wind is strong, people sail on the sea.", "", "fine"),
        ("", "", "empty"),
        ("\n\n ... ", "facts", "empty"),
        ("The sea.", "facts", "empty"),
        ("12", "facts", "empty"),
        ("12", "arithmetic", "fine"),
        ("the sea is wide, " * 12, "", "looping"),
        (SPEECH + " and the fish are" * 20, "", "looping"),  # begins well
        ("Yes: " + "ha" * 100, "", "looping"),  # one word
        ("The sea is wide." + "\n" * 60, "", "looping"),
        (SALAD, "", "off-language"),
        (STRANGE, "", "off-language"),
        ("xkcd qwrt plmk vbnm zxcv", "", "off-language"),
        ("```python\nqx = zt(wv)\nprint(qx, wv, zt)\n```", "code", "fine"),  # code is not looked at
    ],
)
def test_verdicts(text: str, kind: str, verdict: str) -> None:
    assert Judge([SPEECH]).verdict(text, kind) == verdict


def test_lists_and_refrains_do_not_loop() -> None:
    steps = [f"{number}. **{name}**: {name} a little every day." for number, name in enumerate(SPEECH.split()[:12], 1)]
    assert not is_looping("\n".join(steps))
    assert is_looping("\n".join(steps[:1] * 12))
    assert is_looping("\n".join(f"{number}. The lazy old dog" for number in range(1, 9)))


def test_shares_are_of_words_and_pairs() -> None:
    judge = Judge(["a b c d", "d e"])
    assert judge.shares("a b x d") == (0.75, 1.0)  # too few words for pairs
    assert judge.shares("1 2 3 4")[0] == 1.0  # numbers are no words
    assert judge.known_pairs(["a", "b", "c", "d", "e", "a", "x"]) == pytest.approx(4 / 6)
    words, gain = judge.shares("a b c d e a b c d e a x")
    assert words == pytest.approx(11 / 12)
    # 8 of 11 pairs are known; in any order about 1 in 6 of those that could be: 4 kinds of 12 x 11 ordered pairs, by counts
    expected = (3 * 2 + 2 * 2 + 2 * 2 + 2 * 2) / (12 * 11)
    assert gain == pytest.approx(8 / 11 - expected, abs=0.06)


def test_order_tells_speech_from_salad() -> None:
    """By children's stories alone, all but one answer of the float model are more of a language than its words in another order."""
    stored = [item["answer"] for item in json.loads((DATA / "conversations.json").read_text())["conversations"]]
    judge = make_judge([ENGLISH[1]])
    shuffled = [" ".join(np.random.default_rng(0).permutation(text.split())) for text in stored]
    gains = np.array([[judge.shares(text)[1] for text in texts] for texts in (stored, shuffled)])
    assert (gains[0] > gains[1]).sum() >= 23
    assert (gains[1] < PAIR_GAIN).all()
    assert (gains[0] > PAIR_GAIN).sum() > 8  # with more texts nearly all are, see docs/quality.md


def test_questions_are_many_and_held_out() -> None:
    asked = [item["question"] for item in json.loads((DATA / "questions.json").read_text())]
    held_out = json.loads((DATA / "topics.json").read_text())
    stored = json.loads((DATA / "conversations.json").read_text())["conversations"]
    assert (len(set(asked)), len(set(held_out))) == (40, 24)
    assert not set(asked) & set(held_out)
    assert [item["question"] for item in stored] == held_out
    assert len(json.loads((DATA / "openings.json").read_text())) == 20
    judge = make_judge(list(ENGLISH))
    assert all(judge.verdict(item["answer"]) == "fine" for item in stored)


def test_only_answers_are_scored(tmp_path: Path) -> None:
    """Against logits of the whole text; the end token counts where the answer came to its end."""
    model = load(chat_folder(tmp_path / "chat"), kernel="exact")
    assert model.chat_template is not None
    talks = [
        {"question": "Who is it?", "answer": "A cat.", "finished": True},
        {"question": "Who?", "answer": "A big red dog", "finished": False},
    ]
    cut = answer_windows(model.tokenizer, model.chat_template, talks, model.tokenizer.eos_id)
    for window, talk in zip(cut.windows, talks, strict=True):
        prompt = model.chat_template.render([{"role": "user", "content": talk["question"]}])
        begun = model.tokenizer.encode(prompt, add_special_tokens=False)
        assert window.ids[: len(begun)] == begun
        scored = [token for token, counts in zip(window.ids[1:], window.scored, strict=True) if counts]
        assert scored == window.ids[len(begun) :]
        assert (scored[-1] == model.tokenizer.eos_id) == talk["finished"]
        assert model.tokenizer.decode(scored).strip() == talk["answer"]
        exact = token_log_probs(model.logits(window.ids[:-1])[len(begun) - 1 :], np.array(scored))
        subject = open_subject(model.folder.path, "exact")
        assert subject.score(window.ids).log_probs[window.scored] == pytest.approx(exact, abs=1e-5)
    assert (
        cut.denominator
        == cut.scored
        == sum(len(window.ids) for window in cut.windows) - sum(int((~window.scored).sum()) + 1 for window in cut.windows)
    )


def test_answers_are_those_of_chat_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chat_folder(tmp_path / "chat")
    subject = open_subject(folder, "exact")
    options = sampling_of(folder, 3, 12)
    asked = ["Who is it?", "Where is the dog?"]
    found = answers_of(subject, asked, options)
    for number, item in enumerate(found):  # the seed counts up
        chosen = {**vars(options), "seed": 3 + number}
        expected = load(folder, kernel="exact").chat([{"role": "user", "content": asked[number]}], **chosen)
        assert item["answer"].strip() == expected.text.strip()
        assert item["finished"] == (expected.finish_reason == "eos")
    kept = kept_answers(tmp_path / "work", stories_folder(), "exact", 3, greedy=True, threads=1)  # a base model: goes on
    assert len(kept["answers"]) == 20
    assert {item["kind"] for item in kept["answers"]} == {"opening"}
    monkeypatch.setattr("speech.answers.open_subject", lambda *_: pytest.fail("asked again"))
    assert kept_answers(tmp_path / "work", stories_folder(), "exact", 3, greedy=True, threads=1) == kept
    counted = judged(kept, Judge([SPEECH]))
    assert sum(counted["counts"].values()) == 20
    assert len(counted["failures"]) == 20 - counted["counts"]["fine"]


def test_the_page_hides_names_and_the_key_tells_them() -> None:
    def answers(name: str) -> list[dict[str, object]]:
        return [{"question": f"Q{n}?", "answer": f"{name} says {n}", "finished": n % 2 == 0} for n in range(6)]

    text = blind.page({name: answers(name) for name in ("x", "y", "z")}, "greedy", 4, 1)
    body, key = text.split("## Key")
    rows = [line.strip("| ").split(" | ") for line in key.strip().splitlines()[2:]]
    assert len(rows) == 4
    assert len({tuple(row[1:]) for row in rows}) > 1  # the order changes
    for number, index in enumerate((0, 2, 3, 5)):
        part = body.split("\n## ")[number + 1]
        assert part.startswith(f"{number + 1}. Q{index}?")
        for letter, name in zip("ABC", rows[number][1:], strict=True):
            said = part.split(f"**{letter}**")[1].split("**")[0].strip()
            assert said == f"{name} says {index}" + ("" if index % 2 == 0 else " [...]")
    with pytest.raises(ValueError, match="same questions"):
        blind.page({"x": answers("x"), "y": answers("y")[:3]}, "greedy", 2, 1)
