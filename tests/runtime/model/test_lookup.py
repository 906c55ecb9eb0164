"""Drafts that are looked up in the text: the same tokens with fewer runs, and a cache that knows nothing of wrong drafts."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.kvcache import KVCache
from fairy2i_runtime.engine.lookup import MOST_DRAFTED, Drafter, LookAhead
from fairy2i_runtime.errors import OptionError, RunError
from fairy2i_runtime.model import Model, load
from fairy2i_runtime.text.result import Result, Timings
from runtime_models import CHECKPOINT, FailingSession, chat_folder, stories_folder

PROMPTS = [
    "Once upon a time",
    "Lily and Tom went to the park. Lily and Tom",
    "The cat sat. The cat sat. The cat sat.",
    "One day, a big dog",
    "Tim had a red ball. Sam had a red ball, too. Tim and Sam had a red",
    "a",
    "He said: No! No! No! She said: No! No!",
]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a run as single runs would give them to the bit, on every machine: what is tested is the bookkeeping."""

    def all_logits(self: Decoder, tokens: Sequence[int], cache: KVCache, *, interruption: Any = None) -> F32:
        return np.stack([self.next_logits([token], cache, interruption) for token in tokens])

    monkeypatch.setattr(Decoder, "all_logits", all_logits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(chat_folder(tmp_path_factory.mktemp("lookup") / "model"), threads=1)


def told(result: Result) -> tuple[str, list[int], str]:
    return result.text, result.token_ids, result.finish_reason


def random_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [[1, *rng.integers(3, 512, rng.integers(1, 60)).tolist()] for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5, 1, 2], [3, 4], id="what followed"),
        pytest.param([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], [4, 9], id="of two places the last one"),
        pytest.param([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], [3, 8], id="a longer match first"),
        pytest.param([5, 6, 5, 6, 5, 6], [5, 6], id="a text that repeats itself"),
        pytest.param([5, 5, 5], [5, 5], id="one token again and again"),
        pytest.param([1, 2, 3, 4], [], id="nothing occurs twice"),
        pytest.param([1, 2, 3, 2], [], id="one token is no match"),
        pytest.param([1], [], id="a text of one token"),
    ],
)
def test_what_is_drafted(text: list[int], expected: list[int]) -> None:
    assert Drafter(text, 8).draft(8) == expected
    grown = Drafter(text[:1], 8)
    for token in text[1:]:
        grown.push(token)
    assert grown.draft(8) == expected
    assert Drafter(text, 8).draft(1) == expected[:1]
    assert Drafter(text, 8).draft(0) == []


def test_right_drafts_grow_and_wrong_ones_wait() -> None:
    drafter = Drafter([1, 2] * 20, 16)
    lengths = []
    for _ in range(5):
        lengths.append(len(drafter.draft(100)))
        drafter.judge(lengths[-1], lengths[-1])
    assert lengths == [2, 4, 8, 16, 16]
    drafter.judge(16, 3)
    assert len(drafter.draft(100)) == 4
    waited = []
    for _ in range(7):
        drafter.judge(1, 0)
        pauses = 0
        while not (draft := drafter.draft(100)):
            pauses += 1
        waited.append(pauses)
        assert len(draft) == 1
    assert waited == [1, 2, 4, 8, 16, 16, 16]
    drafter.judge(1, 1)
    assert len(drafter.draft(100)) == 2


@pytest.mark.parametrize("most", [1, 3, MOST_DRAFTED])
def test_the_same_answers_with_fewer_runs(one_by_one: None, model: Model, most: int) -> None:
    drafted = accepted = 0
    for prompt in [*PROMPTS, *random_prompts(25)]:
        plain, ahead = (model.stream(prompt, max_new_tokens=90, lookup=each) for each in (0, most))
        pieces = list(ahead)
        assert pieces == list(plain)
        assert told(ahead.result) == told(plain.result)
        timings = ahead.result.timings
        assert timings.decode_tokens == plain.result.timings.decode_tokens
        assert timings.accepted <= timings.drafted
        drafted, accepted = drafted + timings.drafted, accepted + timings.accepted
    assert accepted > 100
    assert drafted > accepted


@pytest.mark.parametrize("kernel", ["lut", "exact"])
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="whether rows depend on each other is onnxruntime's, by processor"
)
def test_with_an_int8_cache_real_runs_of_several_rows_change_nothing(kernel: str, tmp_path: Path) -> None:
    """Nothing of a row depends on how many are run: not in our kernels, and not in onnxruntime's attention over int8."""
    export(CHECKPOINT, tmp_path / "model", kv_cache="int8")
    model = load(tmp_path / "model", kernel=kernel, threads=2)
    accepted = 0
    for prompt in [*PROMPTS, *random_prompts(25)]:
        plain, ahead = (model.generate(prompt, max_new_tokens=150, lookup=each) for each in (0, 8))
        assert told(ahead) == told(plain)
        accepted += ahead.timings.accepted
    assert accepted > 100


def test_with_a_float_cache_logits_move_by_rounding_only(model: Model) -> None:
    """What docs/runtime.md says: attention adds up in another order for one row."""
    exact = load(stories_folder(), kernel="exact", threads=1)
    tokens = exact.tokenizer.encode(PROMPTS[4])
    cache = exact.decoder.new_cache()
    exact.decoder.next_logits(tokens[:-5], cache)
    single = [exact.decoder.next_logits([token], cache) for token in tokens[-5:]]
    cache.truncate(len(tokens) - 5)
    np.testing.assert_allclose(exact.decoder.all_logits(tokens[-5:], cache), single, rtol=0, atol=1e-4)
    result = model.generate(PROMPTS[2], max_new_tokens=100, lookup=8, ignore_eos=True)
    assert (len(result.token_ids), result.finish_reason) == (100, "length")
    assert result.timings.accepted > 0


@pytest.mark.parametrize("count", [*range(1, 12), 40])
def test_no_token_too_many_and_a_cache_as_without(one_by_one: None, model: Model, count: int) -> None:
    talks = [model.conversation() for _ in range(2)]
    for question in (PROMPTS[2], "No! No! No! No!"):
        results = [talk.ask(question, max_new_tokens=count, lookup=each) for talk, each in zip(talks, (0, 8), strict=True)]
        assert told(results[0]) == told(results[1])
        assert talks[0].tokens == talks[1].tokens
        assert talks[0].messages == talks[1].messages
        assert results[0].timings.cached_tokens == results[1].timings.cached_tokens


def test_every_way_to_end(one_by_one: None, model: Model) -> None:
    full = model.generate(PROMPTS[2], max_new_tokens=60)
    ends = set()
    for options in (
        {"stop": [full.text[30:36]]},
        {"stop": [full.text[11:13], full.text[40:45]]},
        {"max_new_tokens": None},
        {"max_new_tokens": None, "ignore_eos": True},
        {"max_new_tokens": 17},
    ):
        plain, ahead = (model.generate(PROMPTS[2], **options, lookup=each) for each in (0, 8))
        assert told(ahead) == told(plain)
        ends.add(plain.finish_reason)
    assert {"stop", "context", "length"} <= ends
    model.eos_ids, usual = frozenset({full.token_ids[25]}), model.eos_ids
    try:
        plain, ahead = (model.generate(PROMPTS[2], lookup=each) for each in (0, 8))
    finally:
        model.eos_ids = usual
    assert told(ahead) == told(plain)
    assert plain.finish_reason == "eos"


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_sampling_draws_the_same_tokens(one_by_one: None, model: Model, penalty: float) -> None:
    """A draft is right if it is the token that is drawn anyway, with all that came before it, so nothing of the choice changes."""
    accepted = 0
    for seed in range(12):
        options = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": penalty, "seed": seed, "max_new_tokens": 120}
        plain, ahead = (model.generate(PROMPTS[seed % 7], **options, lookup=each) for each in (0, 8))
        assert told(ahead) == told(plain)
        accepted += ahead.timings.accepted
    assert accepted > 0


@pytest.mark.parametrize("pieces", [1, 7, 20])
def test_a_stream_that_is_closed_leaves_what_was_told(one_by_one: None, model: Model, pieces: int) -> None:
    results = []
    for most in (0, 8):
        talk = model.conversation()
        stream = talk.stream(PROMPTS[2], lookup=most)
        for _ in range(pieces):
            next(stream)
        stream.close()
        results.append((told(stream.result), talk.tokens))
    assert results[0] == results[1]
    assert results[0][0][2] == "interrupted"


def test_a_run_that_fails_leaves_the_tokens_before_it(model: Model) -> None:
    decoder = load(stories_folder(), threads=1).decoder
    cache = decoder.new_cache()
    text = model.tokenizer.encode(PROMPTS[2])
    decoder.next_logits(text[:-1], cache)
    ahead = LookAhead(decoder, cache, 8)
    decoder.session = FailingSession(decoder.session, 1)  # type: ignore[assignment]
    ahead.next_logits(text[-1], 8)
    assert ahead.drafted > 0
    other = (ahead._ahead[0][0] + 1) % 512
    with pytest.raises(RunError):
        ahead.next_logits(other, 8)  # drafts were wrong, and the run that this takes fails
    assert cache.tokens == text


def test_drafts_stay_within_the_context(one_by_one: None, model: Model) -> None:
    short = load(model.folder.path, threads=1, context_length=40)
    for prompt in PROMPTS[:5]:
        plain, ahead = (short.generate(prompt, max_new_tokens=None, ignore_eos=True, lookup=each) for each in (0, 32))
        assert told(ahead) == told(plain)
        assert plain.finish_reason == "context"


@pytest.mark.parametrize("value", [-1, MOST_DRAFTED + 1, 1.5, "8", None, True])
def test_what_is_no_number_of_tokens(model: Model, value: Any) -> None:
    with pytest.raises(OptionError, match="lookup: expected an integer from 0"):
        model.generate("a", lookup=value)


def test_a_batch_has_none(model: Model) -> None:
    with pytest.raises(OptionError, match="lookup: texts of a batch are run together"):
        model.generate_batch(["a", "b"], lookup=4)


def test_the_statistics() -> None:
    timings = Timings(5, 0, 0.5, 30, 1.0, drafted=25, accepted=10) + Timings(5, 0, 0.5, 10, 1.0)
    assert (timings.drafted, timings.accepted, timings.tokens_per_run) == (25, 10, 40 / 30)
    assert str(timings).endswith(
        "decode: 40 tokens, 20.0 tokens/s; looked up: 10 of 25 tokens were right, 1.33 tokens per run"
    )
    assert "looked up" not in str(Timings(5, 0, 0.5, 30, 1.0))
    assert (Timings().tokens_per_run, Timings(decode_tokens=3).tokens_per_run) == (0.0, 1.0)


def test_the_commands_have_it(
    one_by_one: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    arguments = [str(model.folder.path), PROMPTS[2], "--max-new-tokens", "60", "--stats"]
    assert main(["generate", *arguments]) == 0
    plain = capsys.readouterr()
    assert main(["generate", *arguments, "--lookup", "8"]) == 0
    ahead = capsys.readouterr()
    assert ahead.out == plain.out
    found = re.search(r"looked up: (\d+) of (\d+) tokens were right, \d\.\d\d tokens per run; ended by", ahead.err)
    assert found is not None
    assert 0 < int(found[1]) <= int(found[2])
    assert main(["generate", *arguments, "--lookup", "99"]) == 2
    assert "lookup: expected an integer from 0" in capsys.readouterr().err


def test_the_server_has_it(one_by_one: None, model: Model) -> None:
    pytest.importorskip("uvicorn")
    from serving import serving

    answers = []
    for most in (0, 8):
        with serving(load(model.folder.path, threads=1), sampling={"lookup": most}) as served:
            found = served.client().completions.create(model="model", prompt=PROMPTS[2], max_tokens=60, temperature=0)
            answers.append((found.choices[0].text, json.loads(found.model_dump_json())["usage"]))
            drafted = served.metric('fairy2i_lookup_tokens_total{what="drafted"}')
            accepted = served.metric('fairy2i_lookup_tokens_total{what="accepted"}')
            assert (0 < accepted <= drafted) if most else (drafted == accepted == 0)
    assert answers[0] == answers[1]
