"""The loaded model on the embedded stories checkpoint: generation, logits, stop conditions, streams."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from fairy2i_runtime import Fairy2iRuntimeError, Model, load, register
from fairy2i_runtime.engine.decoder import Decoder
from fairy2i_runtime.engine.kvcache import CacheShape, KVCache
from fairy2i_runtime.errors import ContextError, OptionError, RunError
from fairy2i_runtime.text.result import Result, Timings
from runtime_models import FailingSession, stories_folder

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(stories_folder(), kernel="exact", threads=1)


@pytest.fixture(scope="module")
def plain_session() -> ort.InferenceSession:
    """A session made without this package's session, cache and decoder code."""
    options = ort.SessionOptions()
    options.add_session_config_entry("fairy2i.kernel", "exact")
    register(options)
    return ort.InferenceSession(str(stories_folder() / "model.onnx"), options, providers=["CPUExecutionProvider"])


def uncached_logits(session: ort.InferenceSession, ids: list[int]) -> np.ndarray:
    """Logits of a whole text in one run on an empty cache, float32 [len(ids), vocab]."""
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for item in session.get_inputs():
        if item.name.startswith("past"):
            feeds[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0][0]


def test_greedy_equals_recomputing_everything_for_every_token(model, plain_session):
    ids = model.tokenizer.encode(PROMPT)
    expected: list[int] = []
    while len(expected) < 100:
        token = int(uncached_logits(plain_session, ids + expected)[-1].argmax())
        if token in model.eos_ids:
            break
        expected.append(token)
    assert model.generate(PROMPT, max_new_tokens=100).token_ids == expected


def test_cached_logits_equal_uncached_ones_across_prefill_chunks(model, plain_session):
    ids = np.random.default_rng(0).integers(3, 500, 300).tolist()
    logits = model.logits(ids)
    assert logits.dtype == np.float32
    assert logits.shape == (300, 512)
    np.testing.assert_allclose(logits, uncached_logits(plain_session, ids), rtol=0, atol=2e-4)


def test_one_token_at_a_time_equals_all_at_once(model):
    ids = model.tokenizer.encode("Lily saw a big dog. The dog was")
    cache = model.decoder.new_cache()
    one_by_one = np.stack([model.decoder.next_logits([token], cache) for token in ids])
    np.testing.assert_allclose(one_by_one, model.logits(ids), rtol=0, atol=2e-4)
    assert cache.tokens == ids


def test_without_the_library_the_same_tokens_come_out(model):
    fallback = load(stories_folder(), use_library=False)
    assert fallback.generate(PROMPT, max_new_tokens=40).token_ids == model.generate(PROMPT, max_new_tokens=40).token_ids


def test_text_continues_the_prompt_as_decoding_both_would(model):
    result = model.generate(PROMPT, max_new_tokens=60)
    ids = model.tokenizer.encode(PROMPT)
    assert PROMPT + result.text == model.tokenizer.decode(ids + result.token_ids)
    assert model.generate(ids, max_new_tokens=60).text == result.text
    assert model.generate(np.array(ids), max_new_tokens=60).text == result.text


def test_stream_and_callback_give_the_pieces_of_the_text(model):
    pieces: list[str] = []
    result = model.generate(PROMPT, max_new_tokens=50, on_text=pieces.append)
    stream = model.stream(PROMPT, max_new_tokens=50)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.result
    assert list(stream) == pieces
    assert "".join(pieces) == result.text == stream.result.text
    assert len(pieces) > 20
    assert result.finish_reason == "length"


def test_stop_strings_cut_the_text_before_them(model):
    text = model.generate(PROMPT, max_new_tokens=100).text
    for start, end in ((0, 1), (9, 14), (23, 40), (60, 61)):  # inside tokens and across several
        stop = text[start:end]
        pieces: list[str] = []
        result = model.generate(PROMPT, max_new_tokens=100, stop=["never", stop], on_text=pieces.append)
        assert result.text == "".join(pieces) == text[: text.index(stop)]
        assert result.finish_reason == "stop"
        assert stop in model.tokenizer.decode(result.token_ids)
    assert model.generate(PROMPT, max_new_tokens=100, stop=text[9:14]).finish_reason == "stop"  # one text, no list


def test_a_stop_string_that_never_completes_is_given_out(model):
    text = model.generate(PROMPT, max_new_tokens=20).text
    result = model.generate(PROMPT, max_new_tokens=20, stop=text[-3:] + "§")
    assert (result.text, result.finish_reason) == (text, "length")


def test_seeds_make_draws_repeatable(model):
    def text(seed: int) -> str:
        return model.generate(PROMPT, max_new_tokens=40, temperature=0.9, top_k=40, top_p=0.95, seed=seed).text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_repetition_penalty_counts_the_prompt(model):
    """A huge penalty forbids every token with a positive logit that the prompt holds."""
    ids = model.tokenizer.encode(PROMPT)
    result = model.generate(PROMPT, max_new_tokens=12, repetition_penalty=1e6)
    assert not set(result.token_ids) & set(ids)
    assert len(set(result.token_ids)) == len(result.token_ids)


def test_end_of_text_ends_and_can_be_ignored(model):
    prompt = [*model.tokenizer.encode(PROMPT)]
    first = model.generate(prompt, max_new_tokens=1).token_ids[0]
    eos_ids, model.eos_ids = model.eos_ids, frozenset([first])
    try:
        ended = model.generate(prompt, max_new_tokens=5)
        ignored = model.generate(prompt, max_new_tokens=5, ignore_eos=True)
    finally:
        model.eos_ids = eos_ids
    assert (ended.token_ids, ended.text, ended.finish_reason) == ([], "", "eos")
    assert ignored.token_ids[0] == first
    assert ignored.finish_reason == "length"


def test_generation_ends_where_the_context_does():
    small = load(stories_folder(), context_length=24)
    prompt = small.tokenizer.encode(PROMPT)
    result = small.generate(PROMPT, max_new_tokens=None)
    assert result.finish_reason == "context"
    assert len(prompt) + len(result.token_ids) == 24 + 1  # the last token needs no place in the cache
    assert load(stories_folder()).generate(PROMPT, max_new_tokens=20).token_ids == result.token_ids


def test_what_does_not_fit_is_refused_with_the_numbers(model):
    with pytest.raises(ContextError, match=r"600 tokens .* 512"):
        model.generate([5] * 600)
    with pytest.raises(ContextError, match="512"):
        model.generate([5] * 512)
    with pytest.raises(ContextError, match=r"600 tokens .* 512"):
        model.logits([5] * 600)
    assert model.logits([5] * 512).shape == (512, 512)
    assert model.generate([5] * 511, max_new_tokens=1).finish_reason == "length"


def test_empty_prompts(model):
    assert model.generate("", max_new_tokens=5).token_ids  # the tokenizer adds a beginning-of-text token
    with pytest.raises(ContextError, match="empty"):
        model.generate([])
    with pytest.raises(OptionError, match="at least one token"):
        model.logits([])


@pytest.mark.parametrize("ids", [[512], [-1], [1, 2, 10**6]])
def test_tokens_outside_the_vocabulary_are_refused(model, ids):
    with pytest.raises(OptionError, match="vocabulary of 512"):
        model.logits(ids)
    with pytest.raises(OptionError, match="vocabulary of 512"):
        model.generate(ids)


@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], ["a"]])
def test_things_that_are_no_tokens_are_refused(model, ids):
    with pytest.raises(OptionError, match="list of integers"):
        model.logits(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [3]},
        {"top_q": 1},
        {"top_k": -1},
    ],
)
def test_bad_options_are_named(model, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        model.generate(PROMPT, **options)


def test_closing_a_stream_early_leaves_the_model_usable(model):
    stream = model.stream(PROMPT, max_new_tokens=50)
    pieces = [next(stream), next(stream)]
    stream.close()
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.text == "".join(pieces)
    never_begun = model.stream(PROMPT)
    never_begun.close()
    assert never_begun.result.token_ids == []
    assert model.generate(PROMPT, max_new_tokens=50).text.startswith("".join(pieces))


def test_timings_count_what_was_run():
    fresh = load(stories_folder())
    result = fresh.generate(PROMPT, max_new_tokens=10)
    timings = result.timings
    assert timings.prompt_tokens == len(fresh.tokenizer.encode(PROMPT))
    assert timings.decode_tokens == 9  # the first new token comes from the prompt's logits
    assert timings.prompt_tokens_per_second > 0
    assert timings.decode_tokens_per_second == pytest.approx(9 / timings.decode_seconds)
    fresh.generate(PROMPT, max_new_tokens=10)
    assert fresh.stats.decode_tokens == 18


def test_no_statistics_are_lost_between_threads(monkeypatch):
    """Reading the sum and storing the next one takes a while here, in which other threads do the same."""
    fresh, add = load(stories_folder()), Timings.__add__

    def slow_add(self: Timings, other: Timings) -> Timings:
        total = add(self, other)
        time.sleep(1e-4)
        return total

    monkeypatch.setattr(Timings, "__add__", slow_add)
    result = Result("", [], "eos", Timings(1, 2, 0.5, 3, 0.25))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(fresh.record, [result] * 320))
    assert fresh.stats == Timings(320, 640, 160.0, 960, 80.0)


def test_a_generation_that_fails_is_not_counted(monkeypatch):
    fresh = load(stories_folder(), kernel="exact")
    expected = fresh.generate(PROMPT, max_new_tokens=10)
    counted = fresh.stats
    for successes in (0, 4):  # the prompt; a token
        monkeypatch.setattr(fresh.decoder, "session", FailingSession(fresh.decoder.session, successes))
        stream = fresh.stream(PROMPT, max_new_tokens=10)
        with pytest.raises(RunError, match=r"gave up .*bad allocation.*context_length"):
            list(stream)
        stream.close()
        with pytest.raises(RuntimeError, match="failed and has no result"):
            _ = stream.result
        assert list(stream) == []
    monkeypatch.setattr(fresh.decoder, "session", FailingSession(fresh.decoder.session, 2))
    with pytest.raises(RunError):
        fresh.generate_batch([PROMPT, "Tom"], max_new_tokens=10)
    assert fresh.stats == counted
    assert fresh.generate(PROMPT, max_new_tokens=10).token_ids == expected.token_ids


def test_the_cache_knows_what_is_in_it_when_a_run_fails(model, monkeypatch):
    ids = np.random.default_rng(0).integers(3, 500, 300).tolist()
    cache = model.decoder.new_cache()
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "check_tokens", lambda tokens: None)
        with pytest.raises(RunError, match="gave up running 128 tokens after 128"):  # onnxruntime's own error, at an index
            model.decoder.next_logits([*ids[:200], 10**6, *ids[200:]], cache)
    assert cache.tokens == ids[:128]
    logits = model.decoder.next_logits(ids[128:], cache)
    np.testing.assert_allclose(logits, model.logits(ids)[-1], rtol=0, atol=2e-4)


def test_kernel_and_threads_are_passed_on():
    ids = list(range(3, 60))
    exact, tables = (load(stories_folder(), kernel=kernel).logits(ids) for kernel in ("exact", "lut"))
    assert not np.array_equal(exact, tables)
    np.testing.assert_array_equal(tables, load(stories_folder(), kernel="lut", isa="scalar").logits(ids))
    np.testing.assert_array_equal(tables, load(stories_folder(), threads=2).logits(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "nope"}, r"kernel.*nope.*lut"),
        ({"isa": "nope"}, r"nope.*scalar"),
        ({"threads": 0}, "threads: expected"),
        ({"threads": 1.5}, "threads: expected"),
        ({"context_length": 0}, "context_length: expected 1 to 512"),
        ({"context_length": 513}, "context_length: expected 1 to 512"),
        ({"kernel": "exact", "use_library": False}, "use_library"),
    ],
)
def test_bad_load_options_are_explained(options, message):
    with pytest.raises(OptionError, match=message):
        load(stories_folder(), **options)


def test_generations_in_several_threads_do_not_disturb_each_other(model):
    prompts = [PROMPT, "The dog", "Lily and Tom", "One day"] * 2
    expected = [model.generate(prompt, max_new_tokens=30).text for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: model.generate(prompt, max_new_tokens=30).text, prompts)) == expected


def test_a_graph_in_float16(tmp_path):
    """Cache and logits may be float16: a graph that looks its logits up in a table and leaves the cache alone."""
    onnx = pytest.importorskip("onnx")
    table = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float16)
    value = onnx.helper.make_tensor_value_info
    past = [value(f"past_key_values.0.{part}", 10, [1, 2, "past", 4]) for part in ("key", "value")]
    present = [value(f"present.0.{part}", 10, [1, 2, "past", 4]) for part in ("key", "value")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "input_ids"], ["logits"])]
        + [onnx.helper.make_node("Identity", [f"past_key_values.0.{x}"], [f"present.0.{x}"]) for x in ("key", "value")],
        "table",
        [value("input_ids", 7, [1, "seq"]), value("attention_mask", 7, [1, "total"]), *past],
        [value("logits", 10, [1, "seq", 20]), *present],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    decoder = Decoder(session, context_length=300)
    assert decoder.cache_shape.size_bytes(300) == 2 * 2 * 4 * 2 * 300
    ids = np.random.default_rng(1).integers(0, 20, 290).tolist()
    np.testing.assert_array_equal(decoder.all_logits(ids, decoder.new_cache()), table[ids].astype(np.float32))
    last = decoder.next_logits(ids, decoder.new_cache())
    assert last.dtype == np.float32
    np.testing.assert_array_equal(last, table[ids[-1]].astype(np.float32))


def test_a_cache_too_large_for_the_memory_is_explained(plain_session):
    shape = CacheShape(layers=1, kv_heads=1, head_size=1 << 20, dtype=np.float32)
    with pytest.raises(ContextError, match="choose a smaller context_length"):
        KVCache(plain_session, shape, 1 << 34)


def test_errors_have_one_base_class():
    for error in (ContextError, OptionError):
        assert issubclass(error, Fairy2iRuntimeError)
