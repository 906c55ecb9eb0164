"""The tokenizer of a model folder and its special tokens, against transformers where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export_helpers import edit_json
from fairy2i_runtime import load
from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, OptionError
from fairy2i_runtime.text.tokenizer import Tokenizer
from runtime_models import copy_of_stories, stories_folder

TEXTS = ["Once upon a time", "", " two  spaces ", "naïve café", "日本語 👍", "line\nbreak\ttab", "</s> inside"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_stories(tmp_path / "model")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_and_texts_equal_transformers(text, special):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(stories_folder())
    ours = Tokenizer.load(stories_folder())
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs(text, add_special_tokens=special)["input_ids"]
    for skip in (True, False):
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_a_beginning_token_is_added_as_the_post_processor_says():
    tokenizer = Tokenizer.load(stories_folder())
    assert tokenizer.encode("Once") == [1, *tokenizer.encode("Once", add_special_tokens=False)]


def test_special_tokens_come_from_texts_and_objects(folder):
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<a>", "pad_token": {"content": "<p>", "lstrip": False}})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": None})
    )
    tokenizer = Tokenizer.load(folder)
    # the map overrules the configuration, unless that has an added_tokens_decoder: so does transformers
    assert tokenizer.special_tokens == {"bos_token": "<a>", "eos_token": "</s>", "pad_token": "<p>"}
    assert tokenizer.eos_id == 2
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert Tokenizer.load(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_an_end_token_without_a_row_in_the_embedding_is_none(folder):
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|nothing|>"}')
    assert Tokenizer.load(folder).eos_id == 512
    assert Tokenizer.load(folder, rows=512).eos_id is None
    model = load(folder)
    assert model.eos_ids == {1, 2}
    assert model.tokenizer.encode("<|nothing|>") == load(stories_folder()).tokenizer.encode("<|nothing|>")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_config.json", {"pad_token": 5}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<a>"]}),
        ("special_tokens_map.json", {"extra_special_tokens": "<a>"}),
        ("added_tokens.json", {"<a>": "512"}),
    ],
)
def test_what_is_no_token_is_named(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(ModelFolderError, match=rf"{name}.*expected .*; repair the file"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "ids", [[-1], [2**32], [10**20], [1.5], ["a"], [None], [[1]], 5, "abc", np.array([-1]), np.array([[1, 2]])]
)
def test_what_is_no_token_id_is_refused(ids):
    with pytest.raises(OptionError, match="token ids: expected integers from 0 on"):
        Tokenizer.load(stories_folder()).decode(ids)


def test_ids_without_a_token_are_nothing():
    tokenizer = Tokenizer.load(stories_folder())
    assert tokenizer.decode([403, 600, 2**31, 407]) == tokenizer.decode(np.array([403, 407], np.int32)) == "Once upon"


def test_a_tokenizer_larger_than_the_model_is_reported(folder):
    edit_json(
        folder / "genai_config.json",
        model={**json.loads((folder / "genai_config.json").read_text())["model"], "vocab_size": 500},
    )
    with pytest.warns(Fairy2iWarning, match=r"tokenizer\.json: has 512 tokens, but the model's embedding has 500 rows"):
        load(folder)


def test_truncation_and_padding_of_the_file_are_switched_off(folder):
    path = folder / "tokenizer.json"
    config = json.loads(path.read_text())
    config["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    config["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    path.write_text(json.dumps(config))
    text = "Once upon a time there was a little girl"
    assert Tokenizer.load(folder).encode(text) == Tokenizer.load(stories_folder()).encode(text)
