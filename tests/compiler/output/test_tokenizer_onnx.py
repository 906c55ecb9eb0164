"""tokenizer.onnx and detokenizer.onnx against the tokenizers library, for the kinds of tokenizers that models have."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime_extensions import get_library_path
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from conftest import ROOT
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main as tools_main
from fairy2i_export.errors import TokenizerError
from fairy2i_export.onnx_graph.tokenizer import DETOKENIZER, TOKENIZER, make_tokenizer_graphs
from fairy2i_export.onnx_graph.tokenizer.byte_level import reachable
from fairy2i_export.onnx_graph.tokenizer.check import check_graphs
from fairy2i_export.onnx_graph.tokenizer.description import describe_tokenizer
from fairy2i_export.source.text.sample_text import DEFAULT_TEXT
from fairy2i_runtime import register

STORIES = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
CORPUS = [
    DEFAULT_TEXT,
    "été déjà vu, naïve café",
    "日本語 日本語 中文 中文",
    "привет привет мир",
    "if x:\n    return 1234\n\n    pass",
]
# other texts than the exporter's own sample
TEXTS = [
    "",
    "The quick brown fox",
    "  indented, and trailing  ",
    "\ttabs\tand\n\nnewlines\r\n",
    "déjà vu à Zürich",
    "日本語と中文を混ぜる",
    "🎉🎉 fête 👩‍🚀",
    "x=12345; y = 3.14159",
    "<s>begin</s><s> middle </s>",
    "many    spaces     here",
    "Ωμέγα и кириллица",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def _trained(kind: str) -> str:
    byte_level = kind == "byte_level"
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level, fuse_unk=True))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False) if byte_level else pre_tokenizers.Metaspace()
    byte_tokens = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *byte_tokens], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][: len(SPECIAL)]  # bytes are no added tokens
    return json.dumps(data)


def _begins_with_s(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def make(kind: str) -> Tokenizer:
    """A tokenizer as the named models have it, with a small vocabulary."""
    if kind == "stories":
        return Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    if kind in ("gpt2", "llama3", "smollm"):
        tokenizer = Tokenizer.from_str(_trained("byte_level"))
        tokenizer.decoder = decoders.ByteLevel()
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated", False)
        tokenizer.pre_tokenizer = {
            "gpt2": lambda: pre_tokenizers.ByteLevel(False),
            "llama3": lambda: pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)]),
            "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
        }[kind]()
        if kind == "llama3":
            both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
            tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), both])
            tokenizer.add_tokens([AddedToken("<tool 7>", normalized=False), "été!"])
        return tokenizer
    tokenizer = Tokenizer.from_str(json.dumps({**json.loads(_trained("sentencepiece")), "pre_tokenizer": None}))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    _begins_with_s(tokenizer)
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.removeprefix("metaspace-"), split=False)
    return tokenizer


KINDS = ["stories", "gpt2", "llama3", "smollm", "llama2", "gemma", "metaspace-first", "metaspace-always"]


class Graphs:
    """A folder with the graphs, opened with the operators of both libraries in every session."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        make_tokenizer_graphs(folder).write(folder)
        self.folder, self.tokenizer = folder, tokenizer
        self.encoder, self.decoder = self.session(TOKENIZER), self.session(DETOKENIZER)

    def session(self, name: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        register(options)
        options.register_custom_ops_library(get_library_path())
        return ort.InferenceSession(str(self.folder / name), options)

    def encode(self, texts: list[str], **flags: bool) -> tuple[Any, Any]:
        feeds = {name: np.array([value]) for name, value in flags.items()}
        return self.encoder.run(None, {"text": np.array(texts, object), **feeds})

    def decode(self, ids: Any, **flags: bool) -> list[str]:
        feeds = {name: np.array([value]) for name, value in flags.items()}
        return self.decoder.run(None, {"ids": np.asarray(ids, np.int64), **feeds})[0].tolist()


@pytest.fixture(scope="module", params=KINDS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp(request.param), make(request.param))


def test_ids_equal_the_tokenizers_library(graphs: Graphs) -> None:
    for text in [*TEXTS, *(token.content for token in graphs.tokenizer.get_added_tokens_decoder().values())]:
        assert graphs.encode([text])[0][0].tolist() == graphs.tokenizer.encode(text).ids, text
        plain = graphs.encode([text], add_special_tokens=False)[0][0].tolist()
        assert plain == graphs.tokenizer.encode(text, add_special_tokens=False).ids, text


def test_batches_are_padded_on_the_right_and_masked(graphs: Graphs) -> None:
    ids, mask = graphs.encode(TEXTS)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.shape == mask.shape
    for text, row, kept in zip(TEXTS, ids, mask, strict=True):
        wanted = graphs.tokenizer.encode(text).ids
        assert row[: len(wanted)].tolist() == wanted
        assert kept.tolist() == [1] * len(wanted) + [0] * (len(row) - len(wanted))


def test_text_equals_the_tokenizers_library(graphs: Graphs) -> None:
    ids, _ = graphs.encode(TEXTS)
    for row in ids:
        for skip in (True, False):
            wanted = graphs.tokenizer.decode(row.tolist(), skip_special_tokens=skip)
            assert graphs.decode([row], skip_special_tokens=skip) == [wanted]
    assert graphs.decode(ids) == [graphs.tokenizer.decode(row.tolist()) for row in ids]


def test_unfinished_characters_and_unknown_ids(graphs: Graphs) -> None:
    whole = graphs.tokenizer.encode("z🦑", add_special_tokens=False).ids
    assert graphs.decode([whole])[0].strip() == "z🦑"
    parts = [graphs.decode([whole[:end]])[0] for end in range(1, len(whole) + 1)]
    unfinished = [text for text in parts if "\ufffd" in text]
    assert unfinished, "the vocabulary has no token for this emoji, so its bytes come one by one"
    assert all(set(text.strip()) <= {"z", "\ufffd"} for text in unfinished)
    assert graphs.decode([[-1, 10**9, *whole]]) == graphs.decode([whole])
    assert graphs.decode(np.zeros((2, 0))) == ["", ""]


def test_a_model_runs_in_a_session_with_both_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert export_main([str(STORIES), "-o", str(folder), "--tokenizer-onnx"]) == 0
    assert "tokenizer graphs" in capsys.readouterr().out
    both = Graphs.__new__(Graphs)
    both.folder = folder
    both.encoder, both.decoder = both.session(TOKENIZER), both.session(DETOKENIZER)
    model = both.session("model.onnx")
    ids, mask = both.encode(["Once upon a time"])
    feeds = {"input_ids": ids, "attention_mask": mask}
    for item in model.get_inputs():
        if item.name.startswith("past_"):
            feeds[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
    following = model.run(["logits"], feeds)[0][0, -1].argmax()
    assert both.decode([[*ids[0], following]])[0] == "Once upon a time,"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: setattr(t, "normalizer", normalizers.NFC()), "its normalizer is NFC"),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(True)), "adds a space in front"),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()), "its pre-tokenizer is Whitespace"),
        (lambda t: setattr(t, "decoder", decoders.WordPiece()), "its decoder WordPiece"),
        (lambda t: t.add_special_tokens([AddedToken("<x>", lstrip=True)]), "'<x>' uses lstrip"),
        (lambda t: setattr(t, "model", models.WordLevel({"a": 0}, "a")), "its model is WordLevel"),
        (
            lambda t: setattr(
                t,
                "pre_tokenizer",
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
                ),
            ),
            "",  # by onnxruntime-extensions, or by comparison
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    change: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make("gpt2")
    change(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tools_main(["tokenizer-onnx", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "cannot become an ONNX graph" in message
    assert reason in " ".join(message.split())
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_refused_export_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    shutil.copytree(STORIES, source)
    data = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"][1]["rstrip"] = True
    (source / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert export_main([str(source), "-o", str(tmp_path / "out"), "--tokenizer-onnx", "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "'<s>' uses lstrip, rstrip" in " ".join(message.split())
    assert ".partial" not in message, "the temporary folder is nobody's business"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_differences_are_found(tmp_path: Path) -> None:
    """Graphs of one tokenizer do not pass for another one's: ids first, then text."""
    path = tmp_path / "tokenizer.json"
    make("metaspace-first").save(str(path))
    import onnx

    make_tokenizer_graphs(tmp_path).write(tmp_path)
    first = [onnx.load(tmp_path / name) for name in (TOKENIZER, DETOKENIZER)]
    make("llama2").save(str(path))
    make_tokenizer_graphs(tmp_path).write(tmp_path)
    legacy = [onnx.load(tmp_path / name) for name in (TOKENIZER, DETOKENIZER)]
    description = describe_tokenizer(path)
    assert check_graphs(path, description, *legacy) > 300
    with pytest.raises(TokenizerError, match=r"the tokens of '.*' would be \["):
        check_graphs(path, description, first[0], legacy[1])
    make("gemma").save(str(path))
    make_tokenizer_graphs(tmp_path).write(tmp_path)
    make("llama2").save(str(path))
    with pytest.raises(TokenizerError, match=r"the decoded text of '.*' would be ' "):
        check_graphs(path, description, legacy[0], onnx.load(tmp_path / DETOKENIZER))


def test_tokens_that_no_merges_make_are_not_looked_up(tmp_path: Path) -> None:
    data = json.loads(make("gpt2").to_str())
    data["model"]["vocab"]["unreachable"] = len(data["model"]["vocab"])
    assert "unreachable" not in reachable(data["model"])
    tokenizer = Tokenizer.from_str(json.dumps(data))
    graphs = Graphs(tmp_path, tokenizer)
    wanted = tokenizer.encode("unreachable").ids
    assert len(wanted) > 1
    assert graphs.encode(["unreachable"])[0][0].tolist() == wanted
    data["model"]["ignore_merges"] = True
    graphs = Graphs(tmp_path, Tokenizer.from_str(json.dumps(data)))
    assert graphs.encode(["unreachable"])[0].tolist() == [[data["model"]["vocab"]["unreachable"]]]


def test_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools_main(["tokenizer-onnx", str(tmp_path)]) == 2
    assert "missing" in capsys.readouterr().err
    make("stories").save(str(tmp_path / "tokenizer.json"))
    assert tools_main(["tokenizer-onnx", str(tmp_path)]) == 0
    assert "equal to tokenizer.json on 363 texts" in capsys.readouterr().out
    assert export_main(["model.onnx", "--tokenizer-onnx"]) == 2
    assert "--tokenizer-onnx is for checkpoints only" in " ".join(capsys.readouterr().err.split())
