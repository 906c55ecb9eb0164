"""Where an answer ends: one set of tokens, in this runtime and in onnxruntime-genai, whichever file names them."""

from __future__ import annotations

import ctypes
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairy2i_runtime
from export_helpers import edit_json, make_checkpoint
from fairy2i_export import export
from fairy2i_export.errors import CheckpointError
from runtime_models import CHECKPOINT

PROMPT = "Once upon a time"
TOKENS = 40
NO = {"eos_token_id": None}  # names none
GONE = {"gone": True}  # no such file

# of generation_config.json, config.json and tokenizer_config.json; and the union. The story has 261, 337 and 426 in it.
FILES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[int]]] = {
    "the tokenizer alone": (NO, NO, {"eos_token": "▁a"}, [261]),
    "config.json alone": (NO, {"eos_token_id": 1}, {"eos_token": None}, [1]),
    "generation_config.json alone": ({"eos_token_id": [337, 2]}, NO, {"eos_token": None}, [2, 337]),
    "the tokenizer says more": ({"eos_token_id": 1}, {"eos_token_id": 1}, {"eos_token": "▁a"}, [1, 261]),
    "config.json says more": ({"eos_token_id": 1}, {"eos_token_id": [2, 426]}, {"eos_token": "</s>"}, [1, 2, 426]),
    "all differ": ({"eos_token_id": 1}, {"eos_token_id": 337}, {"eos_token": "▁a"}, [1, 261, 337]),
    "no generation_config.json": (GONE, {"eos_token_id": 337}, {"eos_token": "▁a"}, [261, 337]),
}


def stories(folder: Path, generation: dict[str, Any], config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    shutil.copytree(CHECKPOINT, folder)
    (folder / "special_tokens_map.json").unlink()
    for name, changes in (("generation_config", generation), ("config", config), ("tokenizer_config", tokenizer)):
        if changes is GONE:
            (folder / f"{name}.json").unlink()
        else:
            edit_json(folder / f"{name}.json", **changes)
    return folder


def named(folder: Path) -> dict[str, set[int]]:
    """The end tokens of every file that a host may read them from."""
    files = {"genai_config.json": json.loads((folder / "genai_config.json").read_text())["model"]}
    files["generation_config.json"] = json.loads((folder / "generation_config.json").read_text())
    values = {name: entries["eos_token_id"] for name, entries in files.items()}
    return {name: set(value) if isinstance(value, list) else {value} for name, value in values.items()}


def genai_tokens(folder: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What onnxruntime-genai makes of a prompt until it stops by itself."""
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    ctypes.CDLL(fairy2i_runtime.library_path())
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(ids) + TOKENS)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(ids) :]


@pytest.mark.parametrize("name", FILES)
def test_both_hosts_stop_at_the_union(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *files, union = FILES[name]
    report = export(stories(tmp_path / "model", *files), tmp_path / "out", trained=True)
    assert not report.warnings
    model = fairy2i_runtime.load(report.path, kernel="exact")
    assert sorted(model.eos_ids) == union
    assert named(report.path) == {"genai_config.json": set(union), "generation_config.json": set(union)}
    story = model.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True).token_ids
    end = next((n for n, token in enumerate(story) if token in union), TOKENS)
    result = model.generate(PROMPT, max_new_tokens=TOKENS)
    theirs = genai_tokens(report.path, model.tokenizer.encode(PROMPT), monkeypatch)
    assert result.token_ids == theirs == story[:end]
    assert (end < TOKENS) == (not union[-1] <= 2)  # <s> and </s> do not occur in this story


def test_transformers_ends_a_text_there_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    *files, union = FILES["all differ"]
    files[0] = {**files[0], "temperature": 0.7, "do_sample": True}
    report = export(stories(tmp_path / "model", *files), tmp_path / "out", trained=True)
    read = transformers.GenerationConfig.from_pretrained(report.path)
    assert sorted(read.eos_token_id) == union
    assert (read.temperature, read.do_sample) == (0.7, True)


def test_a_file_that_names_them_all_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = stories(tmp_path / "model", {"eos_token_id": [1]}, {"eos_token_id": 1}, {"eos_token": "<s>"})
    (source / "generation_config.json").write_text('{ "eos_token_id":[1] , "x": 1}')
    report = export(source, tmp_path / "out", trained=True)
    assert (report.path / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


@pytest.mark.parametrize("bad", [-1, 512, 10**12, True, 2.0])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ids_outside_the_vocabulary_are_left_out_with_a_warning(tmp_path: Path, file: str, bad: Any) -> None:
    source = stories(tmp_path / "model", {"eos_token_id": [1]}, {"eos_token_id": [1]}, {"eos_token": "</s>"})
    edit_json(source / file, eos_token_id=[1, bad], bos_token_id=bad, pad_token_id=bad)
    report = export(source, tmp_path / "out", trained=True)
    for kind in ("bos", "eos", "pad"):
        assert any(f"{file}: {kind}_token_id: expected token ids from 0 to 511, found {bad}" in x for x in report.warnings)
    model = json.loads((report.path / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [1, 2], 1)
    assert named(report.path) == {"genai_config.json": {1, 2}, "generation_config.json": {1, 2}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fairy2i_runtime.load(report.path).eos_ids == {1, 2}


@pytest.mark.parametrize("bad", ["</s>", [1, None], [[1]], {"id": 1}])
def test_what_is_no_number_is_refused(tmp_path: Path, bad: Any) -> None:
    source = make_checkpoint(tmp_path / "model")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": bad}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id: expected a token id or a list"):
        export(source, tmp_path / "out")


def test_roles_that_only_the_tokenizer_names(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", bos_token_id=None, eos_token_id=None)
    config = {"bos_token": "<s>", "eos_token": "<end>", "pad_token": "<pad>"}  # the latter two are in no vocabulary
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    report = export(source, tmp_path / "out", trained=True)
    model = json.loads((report.path / "genai_config.json").read_text())["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, 200, 201)
    assert fairy2i_runtime.load(report.path).eos_ids == {200}
