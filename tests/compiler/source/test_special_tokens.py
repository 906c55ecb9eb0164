"""Tokens that are named beside tokenizer.json: the same as transformers makes, for everything that reads text.

The oracle is transformers' AutoTokenizer on the checkpoint. Compared with it: the exporter's own view (training, calibration),
the runtime on a folder that was not completed, and the exported folder as transformers, the runtime and any host that knows
nothing but its tokenizer.json read it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from conftest import ROOT
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.compile.calibrate.text import read_texts
from fairy2i_export.errors import CheckpointError
from fairy2i_export.onnx_graph.tokenizer import make_tokenizer_graphs
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.text.tokenizer import open_tokenizer
from fairy2i_runtime import load
from fairy2i_runtime.text.tokenizer import Tokenizer as RuntimeTokenizer

STORIES = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
ROWS = 210  # of the checkpoint's embedding
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = [
    "w5 <a>w6 <b> w7<c>  <d> </s>w8 <s>",
    "<a> <a><b>\n<c>w3",
    "w5w6 </s> <unk> w199 zz <pad>",
    "",
]


def flags(content: str, **changes: Any) -> dict[str, Any]:
    """A token as the files describe it: special, and otherwise plain."""
    return {
        "content": content,
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
        **changes,
    }


def typed(content: str, **changes: Any) -> dict[str, Any]:
    """As older versions of transformers write tokens with a role."""
    return {"__type": "AddedToken", **flags(content, **changes)}


def write_files(folder: Path, own: list[AddedToken], **files: Any) -> None:
    """A word tokenizer of 200 words with added tokens of its own, and the files beside it; None leaves a file out."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 200)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(own)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))


# what lies beside tokenizer.json
FOLDERS: dict[str, dict[str, Any]] = {
    "a decoder of added tokens": {
        "tokenizer_config": {
            **PLAIN,
            "eos_token": "<b>",
            "pad_token": "<c>",
            "added_tokens_decoder": {
                "200": flags("<a>", special=False, lstrip=True),
                "201": flags("<b>", rstrip=True),
                "202": flags("<c>", single_word=True),
            },
        }
    },
    "roles alone": {
        "tokenizer_config": {**PLAIN, "bos_token": "<s>", "eos_token": "<a>", "pad_token": "<b>", "unk_token": "<unk>"}
    },
    "the former list": {
        "tokenizer_config": {**PLAIN, "eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>", "w7"]}
    },
    "the new list, and typed tokens": {
        "tokenizer_config": {
            **PLAIN,
            "eos_token": typed("</s>", lstrip=True, rstrip=True),
            "extra_special_tokens": ["<a>", typed("<b>", lstrip=True), "<c>"],
        }
    },
    "tokens with roles of their own": {
        "tokenizer_config": {
            **PLAIN,
            "eos_token": "</s>",
            "boi_token": "<c>",
            "extra_special_tokens": {"image_token": "<a>", "eoi_token": "<b>"},
        }
    },
    "a map that overrules": {
        "tokenizer_config": {**PLAIN, "eos_token": "<a>", "pad_token": "<b>"},
        "special_tokens_map": {
            "eos_token": {"content": "<c>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False},
            "pad_token": None,
            "additional_special_tokens": ["<d>"],
        },
    },
    "a map that does not count": {
        "tokenizer_config": {**PLAIN, "eos_token": "<a>", "added_tokens_decoder": {"200": flags("<a>")}},
        "special_tokens_map": {"eos_token": "<c>", "pad_token": "<d>"},
        "added_tokens": {"<b>": 201},
    },
    "a map alone": {"special_tokens_map": {"bos_token": "<s>", "eos_token": "<a>"}},
    "the oldest file": {
        "tokenizer_config": {**PLAIN, "eos_token": "<b>"},
        "added_tokens": {"<c>": 202, "<a>": 200, "<b>": 201},
    },
    "flags that tokenizer.json has otherwise": {
        "own": [AddedToken("<a>", normalized=False), AddedToken("<b>", special=True, lstrip=True)],
        "tokenizer_config": {
            **PLAIN,
            "eos_token": "</s>",
            "added_tokens_decoder": {"200": flags("<a>", rstrip=True), "201": flags("<b>")},
        },
    },
}


def described(tokenizer: Any) -> dict[int, str]:
    return {index: repr(token) for index, token in tokenizer.get_added_tokens_decoder().items()}


def compare(theirs: Any, ids: Callable[[str], list[int]], text: Callable[[list[int], bool], str]) -> None:
    """Ids and texts of everything in :data:`TEXTS`, with special tokens and without."""
    for sample in TEXTS:
        expected = theirs(sample)["input_ids"]
        assert ids(sample) == expected, sample
        for skip in (True, False):
            assert text(expected, skip) == theirs.decode(expected, skip_special_tokens=skip), sample


@pytest.mark.parametrize("name", FOLDERS)
def test_every_host_has_the_tokens_of_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    source = make_checkpoint(tmp_path / "model")
    write_files(source, **{"own": [], **FOLDERS[name]})
    hf = transformers.AutoTokenizer.from_pretrained(source)
    uncompleted = RuntimeTokenizer.load(source)
    report = export(source, tmp_path / "out", trained=True)
    assert not report.warnings
    again = transformers.AutoTokenizer.from_pretrained(report.path)
    bare = Tokenizer.from_file(str(report.path / "tokenizer.json"))
    ours, model = open_tokenizer(source), load(report.path)
    backends = [again.backend_tokenizer, bare, ours.backend, uncompleted._backend, model.tokenizer._backend]
    for backend in backends:
        assert described(backend) == described(hf.backend_tokenizer)
        assert backend.get_vocab() == hf.get_vocab()
        compare(
            hf,
            lambda sample, backend=backend: backend.encode(sample).ids,
            lambda ids, skip, backend=backend: backend.decode(ids, skip_special_tokens=skip),
        )
    for special in (
        again.special_tokens_map,
        ours.special_tokens,
        uncompleted.special_tokens,
        model.tokenizer.special_tokens,
    ):
        assert special == hf.special_tokens_map
    assert model.eos_ids == {2, *([] if hf.eos_token_id is None else [hf.eos_token_id])}


def test_random_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    dice = random.Random(0)
    names = ["<a>", "<b>", "<c>", "<d>", "<s>", "</s>", "<unk>", "w5", "w6"]

    def token() -> Any:
        flips = {flag: dice.random() < 0.5 for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        return dice.choice([dice.choice(names), dice.choice(names), typed(dice.choice(names), **flips)])

    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = [AddedToken(name, special=dice.random() < 0.7, lstrip=dice.random() < 0.3) for name in dice.sample(names, 3)]
        config = {
            **PLAIN,
            **{role: token() for role in ("bos_token", "eos_token", "pad_token", "x_token") if dice.random() < 0.5},
        }
        if dice.random() < 0.5:
            config[dice.choice(["additional_special_tokens", "extra_special_tokens"])] = [token() for _ in range(2)]
        if dice.random() < 0.5:
            entries = {str(dice.randint(0, 205)): token() for _ in range(3)}
            config["added_tokens_decoder"] = {key: value for key, value in entries.items() if isinstance(value, dict)}
        special_map = {"eos_token": dice.choice(names), "y_token": dice.choice(names)} if dice.random() < 0.5 else None
        added = {name: dice.randint(198, 204) for name in dice.sample(names, 2)} if dice.random() < 0.5 else None
        write_files(folder, own, tokenizer_config=config, special_tokens_map=special_map, added_tokens=added)
        hf, ours = transformers.PreTrainedTokenizerFast.from_pretrained(folder), RuntimeTokenizer.load(folder)
        assert described(ours._backend) == described(hf.backend_tokenizer), number
        assert ours.special_tokens == hf.special_tokens_map, number
        compare(hf, ours.encode, lambda ids, skip, ours=ours: ours.decode(ids, skip_special_tokens=skip))
        text = open_tokenizer(folder).text
        if text is not None:
            assert described(Tokenizer.from_str(text)) == described(hf.backend_tokenizer), number


@pytest.mark.parametrize("name", ["stories", "words"])
def test_a_tokenizer_that_lacks_nothing_is_copied_byte_for_byte(tmp_path: Path, name: str) -> None:
    source = tmp_path / "model"
    if name == "stories":
        shutil.copytree(STORIES, source)
    else:
        make_checkpoint(source)
        own = [AddedToken("</s>", special=True, normalized=False)]
        write_files(source, own, tokenizer_config={**PLAIN, "eos_token": "</s>"})
    written = json.dumps(json.loads((source / "tokenizer.json").read_text()), indent=7)  # in nobody's style
    (source / "tokenizer.json").write_text(written)
    report = export(source, tmp_path / "out", trained=True)
    assert (report.path / "tokenizer.json").read_text() == written


def test_completing_is_deterministic_and_needed_once(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    write_files(source, [], **FOLDERS["a decoder of added tokens"])
    first = export(source, tmp_path / "a", trained=True).path / "tokenizer.json"
    second = export(source, tmp_path / "b", trained=True).path / "tokenizer.json"
    assert first.read_bytes() == second.read_bytes() != (source / "tokenizer.json").read_bytes()
    assert open_tokenizer(tmp_path / "a").text is None


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"tokenizer_config": {**PLAIN, "pad_token": "<pad>"}}, "tokenizer_config.json: pad_token"),
        (
            {"special_tokens_map": {"additional_special_tokens": ["<pad>"]}},
            "special_tokens_map.json: additional_special_tokens",
        ),
        ({"added_tokens": {"<pad>": 200}}, "added_tokens.json"),
        (
            {"tokenizer_config": {**PLAIN, "added_tokens_decoder": {"200": flags("<pad>")}}},
            "tokenizer_config.json: added_tokens_decoder",
        ),
    ],
)
def test_tokens_beyond_the_embedding_are_left_out_with_a_warning(tmp_path: Path, files: dict[str, Any], place: str) -> None:
    source = make_checkpoint(tmp_path / "model", vocab_size=200)
    write_files(source, [], **files)
    report = export(source, tmp_path / "out", trained=True)
    (warning,) = report.warnings
    assert f"{place} names the token '<pad>'" in warning
    assert "its id would be 200, but the model's embedding has 200 rows" in warning
    model = load(report.path)
    assert model.tokenizer.token_id("<pad>") is None
    assert model.tokenizer.vocab_size == 200
    assert model.generate("w5 <pad> w6", max_new_tokens=2).token_ids


def test_added_tokens_of_tokenizer_json_itself_beyond_the_embedding(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", vocab_size=201)
    own = [AddedToken("<a>", special=True), AddedToken("<pad>", special=True)]
    config = {**PLAIN, "pad_token": "<pad>", "added_tokens_decoder": {"200": flags("<a>"), "201": flags("<pad>")}}
    write_files(source, own, tokenizer_config=config)
    report = export(source, tmp_path / "out", trained=True)
    (warning,) = report.warnings
    assert "tokenizer.json: the added token '<pad>' has the id 201, but the model's embedding has 201 rows" in warning
    assert load(report.path).tokenizer.encode("w5<a><pad>")[:2] == [5, 200]
    assert load(report.path).tokenizer.vocab_size == 201


def test_ids_that_contradict_each_other(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = make_checkpoint(tmp_path / "model")
    config = {**PLAIN, "eos_token": "<a>", "added_tokens_decoder": {"205": flags("<a>"), "7": flags("w8")}}
    write_files(source, [], tokenizer_config=config)
    report = export(source, tmp_path / "out", trained=True)
    first, second = report.warnings
    assert "tokenizer_config.json: added_tokens_decoder gives the token '<a>' the id 205" in first
    assert "it gets 200" in first
    assert "the token 'w8' the id 7" in second
    hf = transformers.AutoTokenizer.from_pretrained(source)
    assert load(report.path).tokenizer.encode("<a> w8") == hf("<a> w8")["input_ids"] == [200, 8]
    # tokenizer.json at odds with itself: hosts that take its ids literally would disagree with those that count
    write_files(source, [AddedToken("<a>", special=True)], tokenizer_config=PLAIN)
    data = json.loads((source / "tokenizer.json").read_text())
    data["added_tokens"][0]["id"] = 207
    (source / "tokenizer.json").write_text(json.dumps(data))
    report = export(source, tmp_path / "again", trained=True)
    assert "gives the added token '<a>' the id 207" in report.warnings[0]
    assert json.loads((report.path / "tokenizer.json").read_text())["added_tokens"][0]["id"] == 200


def test_a_vocabulary_with_gaps(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "w1": 1, "w3": 3}, unk_token="<unk>"))
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<a>"}))
    warnings = export(source, tmp_path / "out", trained=True).warnings
    assert any("eos_token names the token '<a>'" in x and "the id 3 of the token 'w3'" in x for x in warnings)
    assert any("has 4 tokens, the model's embedding 210 rows" in x for x in warnings)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{}"])
def test_damaged_files_are_reported_and_left_out(tmp_path: Path, name: str, content: bytes) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / name).write_bytes(content)
    report = export(source, tmp_path / "out", trained=True)
    assert name in report.warnings[0]
    assert "the file is left out" in report.warnings[0]
    assert not (report.path / name).exists()
    assert load(report.path).generate("w5", max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<a>"}}}, "added_tokens_decoder: expected"),
        ("tokenizer_config.json", {"eos_token": ["</s>"]}, "eos_token: expected a token"),
        ("added_tokens.json", {"<a>": -1}, "expected a token id for '<a>', got -1"),
    ],
)
def test_entries_that_are_no_tokens_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=rf"{name}.*{message}.*repair the file"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"model": {"type": "BPE"}}', "\x00", '{"added_tokens": []}'])
def test_json_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        export(source, tmp_path / "out")


def test_a_slow_tokenizer_alone_is_refused_by_its_files(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / "tokenizer.json").rename(source / "vocab.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing.*\(vocab\.json\) with transformers: AutoTokenizer"):
        export(source, tmp_path / "out")


def test_a_frame_that_the_files_promise_and_the_tokenizer_does_not_make(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = make_checkpoint(tmp_path / "model")
    write_files(source, [], tokenizer_config={**PLAIN, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    report = export(source, tmp_path / "out", trained=True)
    assert "add_bos_token is true, but the post_processor of tokenizer.json adds no '<s>'" in report.warnings[0]
    hf = transformers.AutoTokenizer.from_pretrained(source)
    assert load(report.path).tokenizer.encode("w5") == hf("w5")["input_ids"] == [5]


def test_training_and_calibration_read_the_same_tokens(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    write_files(source, [], **FOLDERS["a decoder of added tokens"])
    checkpoint = open_checkpoint(source)
    text = tmp_path / "text.txt"
    text.write_text("w5 <a> w6 <b>" * 200)
    assert read_texts(checkpoint, [text], 192, 96).ids[0, :4].tolist() == [5, 200, 6, 201]
    pytest.importorskip("torch")
    from fairy2i_export.train.data.packing import open_encoder

    encoder = open_encoder(checkpoint, ROWS, "none", None)
    assert list(encoder.documents(["w5 <a> w6 <c>"])) == [[5, 200, 6, 202, 2]]
    edit_json(source / "config.json", eos_token_id=None)
    assert open_encoder(open_checkpoint(source), ROWS, "none", None).eos == 201


def test_a_trained_folder_has_them_and_all_templates(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from fairy2i_export.train.result.save import save_result

    source = make_checkpoint(tmp_path / "model")
    write_files(source, [], **FOLDERS["roles alone"])
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):  # over an earlier result, too
        save_result(out, open_checkpoint(source), {"lm_head.weight": torch.zeros(2, 2)}, None, False, torch.bfloat16, {}, {})
        bare = Tokenizer.from_file(str(out / "tokenizer.json"))
        assert [bare.token_to_id(token) for token in ("<a>", "<b>")] == [200, 201]
        assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "T"
        assert open_tokenizer(out).text is None


def stories_with_tokens(folder: Path, rows: int = 512) -> Path:
    """The stories checkpoint with its last words taken away and three tokens in their place, named beside tokenizer.json."""
    shutil.copytree(STORIES, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    model = data["model"]
    gone = set(sorted(model["vocab"], key=model["vocab"].get)[rows - 8 :])
    model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in gone}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if not gone & {*pair, "".join(pair)}]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    decoder = {str(504 + n): flags(token) for n, token in enumerate(("<|im_start|>", "<|im_end|>", "<|pad|>"))}
    edit_json(folder / "tokenizer_config.json", eos_token="<|im_end|>", pad_token="<|pad|>", added_tokens_decoder=decoder)
    return folder


def test_genai_and_the_tokenizer_graphs_have_them_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    genai = pytest.importorskip("onnxruntime_genai")
    ort_extensions = pytest.importorskip("onnxruntime_extensions")
    import numpy as np
    import onnxruntime as ort

    source = stories_with_tokens(tmp_path / "model")
    hf = transformers.AutoTokenizer.from_pretrained(source)
    report = export(source, tmp_path / "out", trained=True, tokenizer_onnx=True)
    assert not report.warnings
    options = ort.SessionOptions()
    options.register_custom_ops_library(ort_extensions.get_library_path())
    session = ort.InferenceSession(str(report.path / "tokenizer.onnx"), options)
    host = genai.Tokenizer(genai.Model(str(report.path)))
    host.update_options(add_special_tokens="true")
    for text in ("<|im_start|>user\nOnce upon<|im_end|>", "a<|pad|><|pad|> b", "Once <|im_start| upon"):
        expected = hf(text)["input_ids"]
        assert [int(token) for token in host.encode(text)] == expected
        assert session.run(None, {"text": np.array([text], object)})[0][0].tolist() == expected
    assert make_tokenizer_graphs(source).encode == make_tokenizer_graphs(report.path).encode  # its hash is among it
