"""Perplexity: the windows of both protocols, the scores against plain logits and torch, and the command."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import tokenizers

from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.commands.tools import main
from fairy2i_runtime import load
from fairy2i_runtime.__main__ import main as runtime_main
from fairy2i_runtime.errors import ContextError, Fairy2iRuntimeError, OptionError
from fairy2i_runtime.measure.perplexity import Window, measure, reference_windows, sliding_windows, text_prefix
from fairy2i_runtime.measure.scoring import score_tokens
from fairy2i_runtime.text.tokenizer import Tokenizer
from runtime_models import CHECKPOINT, stories_folder

TEXT = ROOT / "examples/data/tinystories/tinystories_sample.txt"
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def model():
    return load(stories_folder(), kernel="exact")


@pytest.fixture(scope="module")
def ids(model) -> list[int]:
    return model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:400]


def words(*, bos: bool = True, special: bool = True) -> Tokenizer:
    """A tokenizer of the words a (3), b (4), ... that puts <s> before a text if ``bos``."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS, **{letter: 3 + i for i, letter in enumerate("abcdefghij")}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"} if special else {})


def scored(window: Window) -> list[int]:
    return [token for token, counts in zip(window.ids[1:], window.scored, strict=True) if counts]


def test_scores_are_those_of_the_logits(model, ids):
    logits = model.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = score_tokens(model.decoder, ids)
    np.testing.assert_allclose(scores.log_probs, expected[np.arange(399), ids[1:]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.greedy, logits[:-1].argmax(-1) == ids[1:])


@pytest.mark.parametrize("first", [1, 2, 127, 128, 129, 130, 256, 257, 399])
def test_scores_from_a_position_on_with_a_shared_cache(model, ids, first):
    whole = score_tokens(model.decoder, ids).log_probs
    cache = model.decoder.new_cache()
    score_tokens(model.decoder, [*ids[:200], 5, 6, 7], 3, cache)  # leaves a beginning that fits and an end that does not
    again = score_tokens(model.decoder, ids, first, cache)
    np.testing.assert_allclose(again.log_probs, whole[first - 1 :], rtol=1e-4, atol=1e-5)
    assert len(again.greedy) == 400 - first


def test_a_text_of_one_token_more_than_the_context_fits(model, ids):
    short = load(stories_folder(), context_length=50)
    assert len(score_tokens(short.decoder, ids[:51]).log_probs) == 50
    with pytest.raises(ContextError):
        score_tokens(short.decoder, ids[:52])
    with pytest.raises(OptionError, match="first"):
        score_tokens(model.decoder, ids, 400)
    with pytest.raises(OptionError, match="not in the vocabulary"):
        score_tokens(model.decoder, [1, 512])


def test_sliding_windows_by_hand():
    cut = sliding_windows(words(), "a b c d e f g h i", window=5, stride=2)
    assert [window.ids for window in cut.windows] == [
        [BOS, 3, 4, 5, 6],
        [BOS, 5, 6, 7, 8],
        [BOS, 7, 8, 9, 10],
        [BOS, 8, 9, 10, 11],
    ]
    assert [scored(window) for window in cut.windows] == [[3, 4, 5, 6], [7, 8], [9, 10], [11]]
    assert (cut.scored, cut.denominator, cut.tokens, cut.text_bytes) == (9, 9, 9, 17)
    assert "windows of 5 tokens, each begun with [1]" in cut.statement


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("window", [3, 4, 7, 10, 30])
@pytest.mark.parametrize("stride", [1, 2, None])
def test_sliding_windows_score_every_token_once(bos, window, stride):
    text = "a b c d e f g h i j j i h g"
    tokens = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 11, 10, 9]
    cut = sliding_windows(words(bos=bos), text, window, stride)
    assert [token for item in cut.windows for token in scored(item)] == (tokens if bos else tokens[1:])
    assert all(len(item.ids) <= window for item in cut.windows)
    assert cut.text_bytes == (len(text) if bos else None)


def test_reference_windows_by_hand():
    # documents of 3, 1, 0, 6 (too long), 2 and 2 tokens; window of 6
    cut = reference_windows(words(), "a b c\nd\n\na a a a a a\ne f\ng h", window=6)
    assert [window.ids for window in cut.windows] == [[BOS, 3, 4, 5, EOS], [BOS, 6, EOS, 7, 8, EOS], [BOS, 9, 10, EOS]]
    assert [scored(window) for window in cut.windows] == [[3, 4, 5, EOS], [6, EOS, 8, EOS], [9, 10, EOS]]  # not 7
    assert cut.denominator == 4 + 5 + 3  # 7 counts all the same
    assert (cut.dropped_documents, cut.tokens, cut.scored) == (1, 4 + 2 + 3 + 3, 11)
    assert [w.ids for w in reference_windows(words(), "a b#c", 6, "#", tokens=4).windows] == [[BOS, 3, 4, EOS]]


def test_reference_windows_where_a_document_fills_one():
    """As published: it makes a window of one token more, unless it is the last, which is then lost."""
    cut = reference_windows(words(), "a b c\nd", window=4)
    assert [window.ids for window in cut.windows] == [[BOS, 3, 4, 5, EOS], [BOS, 6, EOS]]
    cut = reference_windows(words(), "d\na b c", window=4)
    assert [window.ids for window in cut.windows] == [[BOS, 6, EOS]]


def test_impossible_cuts_are_refused():
    with pytest.raises(OptionError, match="stride: expected 1 to 4"):
        sliding_windows(words(), "a b c", 5, 5)
    with pytest.raises(OptionError, match="stride: expected 1 to 4"):
        sliding_windows(words(bos=False), "a b c", 5, 5)
    with pytest.raises(OptionError, match="at least 2 tokens"):
        sliding_windows(words(), "a", 5)
    with pytest.raises(OptionError, match="window: expected at least 2"):
        sliding_windows(words(), "a b", 1)
    with pytest.raises(OptionError, match="no end-of-text token"):
        reference_windows(words(special=False), "a b", 5)
    with pytest.raises(OptionError, match="no document"):
        reference_windows(words(), "a b c d e f", 5)
    with pytest.raises(OptionError, match="separator"):
        reference_windows(words(), "a b", 5, "")


def test_text_prefix():
    assert text_prefix(words()) == [BOS]
    assert text_prefix(words(bos=False)) == []
    assert text_prefix(load(stories_folder()).tokenizer) == [BOS]


def test_the_numbers_by_hand():
    cut = reference_windows(words(), "a\nb", window=6)  # <s> a </s> b </s>: b is not scored
    result = measure(cut, lambda ids: np.log([0.5, 0.25, 0.01, 0.125]))
    assert result.perplexity == pytest.approx((0.5 * 0.25 * 0.125) ** (-1 / 4))
    assert result.as_dict()["perplexity_of_scored_tokens"] == pytest.approx((0.5 * 0.25 * 0.125) ** (-1 / 3))
    assert result.loss_error == pytest.approx(np.std(np.log([0.5, 0.25, 0.125]), ddof=1) / math.sqrt(3))
    cut = sliding_windows(words(), "a b", window=6)
    assert measure(cut, lambda ids: np.log([0.5, 0.25])).bits_per_byte == pytest.approx(3 / 3)
    with pytest.raises(Fairy2iRuntimeError, match="not finite"):
        measure(cut, lambda ids: np.array([np.nan, 0.0]))


@pytest.mark.parametrize("program", [main, runtime_main])
def test_the_command_prints_json(capsys, program):
    arguments = [
        "ppl",
        str(stories_folder()),
        "--text",
        str(TEXT),
        "--tokens",
        "700",
        "--separator",
        "<|endoftext|>",
        "--json",
    ]
    assert program(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"]["bytes"] == TEXT.stat().st_size
    sliding, reference = report["results"]
    assert (sliding["protocol"], sliding["window"], sliding["stride"], sliding["scored_tokens"]) == (
        "sliding",
        512,
        256,
        700,
    )
    assert (reference["protocol"], reference["stride"], reference["bits_per_byte"]) == ("reference", None, None)
    assert reference["denominator"] >= reference["scored_tokens"]
    for result in report["results"]:
        assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
        assert 3 < result["perplexity"] < 12


@pytest.mark.parametrize("options", [{}, {"backend": "dense"}, {"lm_head": "int4", "kv_cache": "float16"}])
def test_float_measures_the_source_as_it_is(options, tmp_path, capsys):
    """The numbers are those that transformers gives for the checkpoint, whatever was made of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = make_checkpoint(tmp_path / "model")
    export(source, tmp_path / "out", **options)
    text = [f"w{i}" for i in np.random.default_rng(0).integers(3, 90, 80)]
    (tmp_path / "text").write_text(" ".join(text))
    arguments = ["ppl", str(tmp_path / "out"), "--text", str(tmp_path / "text"), "--protocol", "sliding", "--json"]
    assert main([*arguments, "--float", str(source)]) == 0
    report = json.loads(capsys.readouterr().out)
    (found,), (difference,) = report["float"]["results"], report["float"]["differences"]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.tensor([[int(word[1:]) for word in text]])
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert np.log(found["perplexity"]) == pytest.approx(expected, abs=1e-5)
    own = np.log(report["results"][0]["perplexity"])
    assert difference["log_ratio"] == pytest.approx(own - expected, abs=1e-5)


def test_float_of_a_trained_model_says_what_it_is(capsys):
    pytest.importorskip("torch")
    arguments = ["ppl", str(stories_folder()), "--text", str(TEXT), "--tokens", "60", "--protocol", "sliding"]
    assert main([*arguments, "--float", str(CHECKPOINT)]) == 0
    captured = capsys.readouterr()
    assert "was trained for Fairy2i" in captured.err
    assert "times that (log ratio" in captured.out or "from that" in captured.out


def test_against_torch_in_exact_mode(capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    arguments = ["ppl", str(stories_folder()), "--text", str(TEXT), "--tokens", "600", "--kernel", "exact"]
    arguments += ["--separator", r"\n", "--against", str(CHECKPOINT)]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["protocol"] for result in report["against"]["results"]] == ["sliding", "reference"]
    for difference in report["against"]["differences"]:
        assert abs(difference["log_ratio"]) < 1e-5
    assert main([*arguments, "--protocol", "reference"]) == 0
    out = capsys.readouterr().out
    assert "torch, reference: " in out
    assert "tokens after 2 not scored but counted" in out
    assert "sliding" not in out


ONE = "Once upon a time there was a girl. She had a dog. " * 60  # of more tokens than the context


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        (ONE, [], "no document that fits into a window of 512 tokens: 1 found"),
        ("Once upon a time there was a little girl who had a dog.\n" * 9, ["--tokens", "8"], "more than --tokens 8"),
        ("\n" * 40 + "." * 9 + " ", ["--separator", " "], None),
        (ONE, ["--window", "20"], "no document that fits into a window of 20 tokens"),
    ],
)
def test_of_both_protocols_those_that_have_a_document(text, more, why, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    arguments = ["ppl", str(stories_folder()), "--text", str(file), *more]
    assert main([*arguments, "--json"]) == 0
    found, notes = capsys.readouterr()
    report = json.loads(found)
    assert main([*arguments, "--json", "--protocol", "sliding"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["left_out"] == []
    assert report["results"][0]["perplexity"] == alone["results"][0]["perplexity"]
    if why is None:
        assert report["left_out"] == []
        return
    assert [result["protocol"] for result in report["results"]] == ["sliding"]
    ((left,),) = [report["left_out"]]
    assert left["protocol"] == "reference"
    assert why in left["reason"]
    assert notes == f"note: protocol reference is left out: {left['reason']}\n"
    assert main([*arguments, "--protocol", "reference"]) == 2
    assert why in capsys.readouterr().err


def test_the_source_is_looked_at_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fairy2i_runtime.model.load", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "empty").mkdir()
    commands = (["ppl", "{}", "--text", str(TEXT)], ["verify", "{}"], ["report", "{}", "-o", str(tmp_path / "r.html")])
    for command in commands:
        for source in ("/absent", str(tmp_path / "empty"), f"{stories_folder()}/model.onnx"):
            assert main([part.format(stories_folder()) for part in command] + ["--against", source]) == 2
            printed = capsys.readouterr()
            assert printed.err.count("\n") == 1
            assert source in printed.err
            assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], "Missing option '--text'"),
        (["/absent", "--text", "{text}"], "/absent does not exist"),
        (["{}", "--text", "/absent.txt"], "--text /absent.txt: no such file; expected a UTF-8 text file"),
        (["{}", "--text", "{}/model.onnx"], "expected a UTF-8 text file"),
        (["{}", "--text", "{text}", "--protocol", "x"], "--protocol: expected sliding, reference or both"),
        (["{}", "--text", "{text}", "--window", "513"], "--window: expected 2 to 512"),
        (["{}", "--text", "{text}", "--stride", "0"], "stride: expected 1 to 511"),
        (["{}", "--text", "{text}", "--tokens", "1"], "--tokens: expected at least 2"),
        (["{}", "--text", "{text}", "--kernel", "nope"], "unknown kernel"),
        (["{}", "--text", "{text}", "--against", "/absent"], "no such file or directory"),
    ],
)
def test_mistakes_give_one_message(capsys, arguments, message):
    assert main(["ppl", *(argument.format(stories_folder(), text=TEXT) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "only blanks"),
        ("Once".encode("utf-16"), "begins like UTF-16"),
        ("Once".encode("utf-16-le"), "holds zero bytes"),
        (b"Once upon a time " * 1000 + b"\0", "holds zero bytes"),
        (b"caf\xe9", "found byte 0xe9, which is not UTF-8"),
        (None, "is a folder"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["ppl", "verify"])
def test_texts_that_are_none(command, contents, message, tmp_path, capsys):
    path = tmp_path / "text"
    if contents is None:
        path.mkdir()
    else:
        path.write_bytes(contents)
    assert main([command, str(stories_folder()), "--text", str(path)]) == 2
    assert f"--text {path}: " in (said := capsys.readouterr().err)
    assert message in said


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["ppl", str(stories_folder()), "--text", str(tmp_path / "pipe")]) == 2
    assert "is a pipe" in capsys.readouterr().err
