"""Model folders as users get them wrong: each mistake gives one message that names the file and what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fairy2i_runtime import load
from fairy2i_runtime.errors import ChatTemplateError, Fairy2iWarning, ModelFolderError
from fairy2i_runtime.folder import open_folder
from runtime_models import CHECKPOINT, copy_of_stories, edit_config, stories_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_stories(tmp_path / "model")


def test_a_good_folder(folder):
    opened = open_folder(str(folder))
    assert opened.model_file == folder / "model.onnx"
    assert opened.context_length == 512
    assert opened.eos_ids == {1, 2}


def test_end_tokens_of_both_files_count(folder):
    edit_config(folder, "model", "eos_token_id", value=7)
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert open_folder(folder).eos_ids == {7, 8, 9}
    (folder / "generation_config.json").unlink()
    assert open_folder(folder).eos_ids == {7}
    assert load(folder).eos_ids == {7, 2}  # </s>, which the tokenizer calls its eos_token


def test_no_folder_a_file_and_a_checkpoint(tmp_path):
    with pytest.raises(ModelFolderError, match=r"absent does not exist; fairy2i-export SOURCE -o"):
        load(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match=r"model\.onnx is a file: expected the folder"):
        load(stories_folder() / "model.onnx")
    with pytest.raises(ModelFolderError, match="checkpoint to be exported first"):
        load(CHECKPOINT)
    with pytest.raises(ModelFolderError, match=r"no genai_config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        load(folder)


def test_optional_files_may_be_missing(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json", "README.md"):
        (folder / name).unlink(missing_ok=True)
    assert load(folder).generate("Once", max_new_tokens=3).text


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe", b"null"])
def test_damaged_json_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=name):
        load(folder)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["model"], None, "object model"),
        (["model", "decoder"], [], "object decoder"),
        (["model", "decoder", "filename"], "../model.onnx", "name of a file in the folder"),
        (["model", "decoder", "filename"], "/etc/passwd", "name of a file in the folder"),
        (["model", "decoder", "filename"], "other.onnx", "other.onnx is missing"),
        (["model", "context_length"], 0, "expected 1 to"),
        (["model", "context_length"], "512", "expected 1 to"),
        (["model", "context_length"], 10**15, "expected 1 to"),
        (["model", "eos_token_id"], "</s>", "token id or a list"),
        (["model", "eos_token_id"], [1, None], "token id or a list"),
    ],
)
def test_impossible_configurations_are_explained(folder, keys, value, message):
    edit_config(folder, *keys, value=value)
    with pytest.raises(ModelFolderError, match=message):
        load(folder)


def test_damaged_models_are_named(folder):
    os.truncate(folder / "model.onnx.data", 100_000)
    with pytest.raises(ModelFolderError, match=r"model\.onnx.*export the model again"):
        load(folder)
    (folder / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelFolderError, match=r"model\.onnx.*export the model again"):
        load(folder)


def test_a_graph_of_another_form_is_refused(folder):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Cast", ["input_ids"], ["logits"], to=1)
    graph = onnx.helper.make_graph(
        [node],
        "other",
        [onnx.helper.make_tensor_value_info("input_ids", 7, [1, "s"])],
        [onnx.helper.make_tensor_value_info("logits", 1, [1, "s"])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), folder / "model.onnx"
    )
    with pytest.raises(ModelFolderError, match=r"not a decoder .*attention_mask"):
        load(folder)


@pytest.mark.parametrize(("version", "message"), [("2", "reads up to 1"), ("x", "expected a number")])
def test_files_of_a_newer_format_are_refused(folder, version, message):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "fairy2i.format_version":
            entry.value = version
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFolderError, match=message):
        load(folder)


def test_a_broken_chat_template_stops_chat_alone(folder):
    (folder / "chat_template.jinja").write_text("line\n{% if %}")
    model = load(folder)
    assert model.generate("Once", max_new_tokens=3).text == load(stories_folder()).generate("Once", max_new_tokens=3).text
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja: syntax error in line 2"):
        model.conversation()
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja: syntax error in line 2"):
        model.chat([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize("name", ["genai_config.json", "generation_config.json"])
@pytest.mark.parametrize("bad", [-1, 512, 10**12, True, 2.0])
def test_end_tokens_outside_the_vocabulary_are_left_out(folder, name, bad):
    config = json.loads((folder / name).read_text())
    config.get("model", config)["eos_token_id"] = [2, bad]
    (folder / name).write_text(json.dumps(config))
    with pytest.warns(Fairy2iWarning, match=rf"{name}: .*eos_token_id: expected token ids from 0 to 511, found {bad}"):
        assert load(folder).eos_ids == {1, 2}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_library_in_the_model_folder_is_never_loaded(folder):
    """genai_config.json names a custom operator library for onnxruntime-genai; this package takes only its own."""
    from fairy2i_runtime import library_path

    shutil.copy(library_path(), folder / "libfairy2i_ops.so")
    model = load(folder)
    model.generate("Once", max_new_tokens=2)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libfairy2i_ops" in line}
    assert str(Path(library_path()).resolve()) in mapped  # those of earlier tests stay, too
    assert not [path for path in mapped if Path(path).is_relative_to(folder)]
