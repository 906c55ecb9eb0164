"""Tokenizer classes whose pipeline transformers builds itself: a warning exactly where tokenizer.json has another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.source.text.tokenizer import open_tokenizer
from fairy2i_export.source.text.tokenizer_class import class_warning

transformers = pytest.importorskip("transformers")
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "▁": 4, "b": 5, "Ġ": 6, "<|endoftext|>": 7}


def saved(folder: Path, name: str, **options: Any) -> Path:
    """A tokenizer as transformers saves it."""
    getattr(transformers, name)(vocab=VOCABULARY, merges=[], **options).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


SENTENCEPIECE = {  # as the tokenizer.json of LLaMA 2
    "pre_tokenizer": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
}


@pytest.mark.parametrize(
    ("name", "options", "of_the_file", "of_the_config"),
    [
        ("LlamaTokenizer", {}, {}, {}),
        ("LlamaTokenizer", {"add_prefix_space": False}, {}, {}),
        ("LlamaTokenizer", {"legacy": True}, {}, {}),  # which is not saved
        ("LlamaTokenizer", {}, {}, {"legacy": True}),
        ("LlamaTokenizer", {}, {}, {"add_prefix_space": False}),
        ("LlamaTokenizer", {}, SENTENCEPIECE, {}),
        ("LlamaTokenizer", {}, SENTENCEPIECE, {"legacy": False, "tokenizer_class": "LlamaTokenizerFast"}),
        ("LlamaTokenizer", {}, SENTENCEPIECE, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("Qwen2Tokenizer", {}, {}, {}),
        ("Qwen2Tokenizer", {"add_prefix_space": True}, {}, {}),
        ("Qwen2Tokenizer", {}, {}, {"add_prefix_space": True}),
        ("Qwen2Tokenizer", {}, {"normalizer": None}, {}),
        ("GPT2Tokenizer", {}, {}, {}),
        ("GPT2Tokenizer", {}, {}, {"add_prefix_space": True}),
        ("GPT2Tokenizer", {}, {"normalizer": {"type": "NFC"}}, {}),
    ],
    ids=str,
)
def test_a_warning_where_transformers_builds_another_pipeline(
    tmp_path: Path, name: str, options: dict[str, Any], of_the_file: dict[str, Any], of_the_config: dict[str, Any]
) -> None:
    folder = saved(tmp_path, name, **options)
    edit(folder / "tokenizer.json", **of_the_file)
    edit(folder / "tokenizer_config.json", **of_the_config)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    built = json.loads(transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    same = all(built[part] == data[part] for part in ("normalizer", "pre_tokenizer"))
    assert (class_warning(config, data) is None) == same


def test_the_export_says_it(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    warnings = export(source, tmp_path / "out", trained=True).warnings
    assert any("tokenizer_config.json: tokenizer_class LlamaTokenizer: transformers 5 builds" in text for text in warnings)


@pytest.mark.parametrize(
    "config",
    [
        {"model_specific_special_tokens": {"tool_token": "<tool>"}},
        {"model_specific_special_tokens": {"tool_token": "<tool>"}, "image_token": "<image>"},
        {"image_token": {"content": "<image>", "special": True}},
        {"image_token": {"__type": "AddedToken", "content": "<image>", "special": True}},
    ],
    ids=str,
)
def test_tokens_with_roles_of_their_own(tmp_path: Path, config: dict[str, Any]) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = open_tokenizer(source)
    text = "w5 <tool> w6 <image> w7"
    assert ours.backend.encode(text).ids == theirs(text)["input_ids"]
    assert ours.backend.get_vocab() == theirs.get_vocab()
