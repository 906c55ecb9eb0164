"""Streams of text: whole characters, right spaces, the same text as decoding everything at once, exact stop strings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fairy2i_runtime.text.streaming import REPLACEMENT, StopMatcher, StreamDecoder
from fairy2i_runtime.text.tokenizer import Tokenizer

CORPUS = ["the cat sat on the mat", "once upon a time there was a bird", "the time the cat was a bird"] * 3
TEXT = st.text(
    st.one_of(
        st.sampled_from(list("the cat  \n")),
        st.sampled_from(["é", "ё", "日", "本", "👍", "👨‍👩‍👧", "🏽", "e\u0301", "\u0301", "\u200d", "ß", "�"]).map(
            lambda s: s[0]
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


def byte_fallback_tokenizer() -> Tokenizer:
    """Built as Llama-2's: spaces are U+2581, unknown characters become byte tokens, the first space is stripped."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainer)
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    for piece, _ in learned:
        vocab.setdefault(piece, len(vocab))
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


def byte_level_tokenizer() -> Tokenizer:
    """Built as GPT-2's and Llama-3's: every byte is a character of the vocabulary."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return Tokenizer(backend, {"eos_token": "<|end|>"})


def metaspace_tokenizer() -> Tokenizer:
    """Decoder of T5 and newer Llama files: the first token loses its U+2581."""
    tokenizer = byte_fallback_tokenizer()
    backend = tokenizer._backend
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return Tokenizer(backend, {})


TOKENIZERS = {
    "byte_fallback": byte_fallback_tokenizer(),
    "byte_level": byte_level_tokenizer(),
    "metaspace": metaspace_tokenizer(),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def stream(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    decoder = StreamDecoder(tokenizer.decode, context)
    return [*(decoder.push(token) for token in ids), decoder.finish()]


@every_tokenizer
@given(text=TEXT)
@example(text="")
@example(text="  leading and trailing  ")
@example(text="日本語のテキスト")
@example(text="family 👨‍👩‍👧 e\u0301 done")
def test_text_streams_to_what_decoding_it_at_once_gives(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@every_tokenizer
@given(text=TEXT)
def test_no_piece_ends_inside_a_character(tokenizer, text):
    assume(REPLACEMENT not in text)
    ids = tokenizer.encode(text)
    assert not any(REPLACEMENT in piece for piece in stream(tokenizer, ids))


@every_tokenizer
@given(prompt=TEXT, text=TEXT, data=st.data())
def test_a_stream_after_a_prompt_continues_its_text(tokenizer, prompt, text, data):
    """Wherever the tokens of a text are divided into prompt and answer, prompt text + stream = the whole."""
    assume(REPLACEMENT not in prompt + text)  # at the end of a prompt it cannot be told from an unfinished character
    ids = tokenizer.encode(prompt + text)
    cut = data.draw(st.integers(0, len(ids)))
    before = tokenizer.decode(ids[:cut]).rstrip(REPLACEMENT)
    assume(tokenizer.decode(ids).startswith(before))
    assert before + "".join(stream(tokenizer, ids[cut:], ids[:cut])) == tokenizer.decode(ids)


def broken_runs(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether a run of byte tokens begins with complete characters and is no UTF-8 as a whole (the documented exception)."""
    tokens = [tokenizer._backend.id_to_token(token) for token in ids]
    tokens = [token for token in tokens if token not in ("<s>", "</s>", "<unk>", "<|end|>")]
    run = b""
    for token in [*tokens, "end"]:
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            run += bytes.fromhex(token[3:5])
            continue
        try:
            run.decode()
        except UnicodeDecodeError as error:
            if error.start > 0:
                return True
        run = b""
    return False


@every_tokenizer
@settings(max_examples=300)
@given(data=st.data())
def test_any_tokens_at_all(tokenizer, data):
    """Random tokens, special ones and broken UTF-8 among them."""
    token = st.one_of(
        st.integers(0, 258), st.integers(0, tokenizer.vocab_size - 1), st.sampled_from(tokenizer.encode("é日👍"))
    )
    ids = data.draw(st.lists(token, max_size=20))
    text = "".join(stream(tokenizer, ids))
    if broken_runs(tokenizer, ids):
        characters = iter(text)  # nothing that decoding at once gives is missing, and all is in order
        assert all(character in characters for character in tokenizer.decode(ids).replace(REPLACEMENT, ""))
    else:
        assert text == tokenizer.decode(ids)


def test_complete_characters_come_out_before_a_run_of_byte_tokens_ends():
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [3 + byte for byte in "日本".encode()]
    assert stream(tokenizer, ids) == ["", "", "日", "", "", "本", ""]


def test_complete_characters_stay_when_the_run_turns_out_broken():
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [*(3 + byte for byte in "日".encode()), 3 + 0xFF, tokenizer.token_id("▁the")]
    assert tokenizer.decode(ids) == REPLACEMENT * 4 + " the"
    assert "".join(stream(tokenizer, ids)) == "日" + REPLACEMENT + " the"


def test_the_window_does_not_grow_with_the_text():
    seen = []
    tokenizer = TOKENIZERS["byte_fallback"]

    def decode(ids):
        seen.append(len(ids))
        return tokenizer.decode(ids)

    decoder = StreamDecoder(decode, tokenizer.encode("the cat sat"))
    for token in tokenizer.encode("on the mat once upon a time " * 20, add_special_tokens=False):
        decoder.push(token)
    assert max(seen[10:]) <= 4


PIECES = st.lists(st.text("ab c", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab c", min_size=1, max_size=4), max_size=3)


def cut_one_character_at_a_time(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=500)
@given(pieces=PIECES, stops=STOPS)
@example(pieces=["a", "b", "ab", "c"], stops=["abc"])
@example(pieces=["aab"], stops=["ab", "aab"])
@example(pieces=["ab", "cc"], stops=["abcX", "b"])
def test_stop_strings_equal_a_search_character_by_character(pieces, stops):
    matcher = StopMatcher(stops)
    given_out = []
    for piece in pieces:
        given_out.append(matcher.push(piece))
        # never more than the answer, and no less than what no stop string can take back
        expected, _ = cut_one_character_at_a_time("".join(pieces), stops)
        assert expected.startswith("".join(given_out))
    given_out.append(matcher.finish())
    assert ("".join(given_out), matcher.found) == cut_one_character_at_a_time("".join(pieces), stops)


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    matcher = StopMatcher(["</s>"])
    assert [matcher.push(piece) for piece in ["a <", "/", "x", "y</s", ">z"]] == ["a ", "", "</x", "y", ""]
    assert matcher.found == "</s>"
    assert matcher.push("more") == ""
    assert matcher.finish() == ""
