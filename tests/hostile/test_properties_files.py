"""Whatever is in a file that somebody else made, our readers give a value or an error that is documented, and nothing else.

The inputs are hypothesis': bytes, JSON of any form, and sound files in which something is exchanged for something else.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fairy2i_export.codes.layout import PackedLinear, pack, packed_size, unpack
from fairy2i_export.decoder.architectures import describe
from fairy2i_export.errors import Fairy2iError, FormatError
from fairy2i_export.output.journal import Journal
from fairy2i_export.source.json_file import read_json as read_source_json
from fairy2i_export.source.safetensors_file import SafetensorsFile
from fairy2i_runtime.commands.chat import template_variables
from fairy2i_runtime.engine.integrity import integrity_problems
from fairy2i_runtime.errors import ChatTemplateError, ModelFolderError, OptionError
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.options import GenerationOptions
from fairy2i_runtime.text.recommended import recommended_sampling
from fairy2i_runtime.text.tokenizer_file import TokenizerFileError, parse_tokenizer
from fuzz.strategies import FEW, JSON, SOME, TEXTS, changed, written
from runtime_models import CHAT_TEMPLATE, CHECKPOINT, stories_folder


def outcome(
    errors: type[Exception] | tuple[type[Exception], ...], call: Callable[..., Any], *arguments: Any
) -> tuple[Any, str]:
    """(what the call gives, "") or (None, the message of the documented error); every other exception passes."""
    try:
        return call(*arguments), ""
    except errors as error:
        message = str(error)
    assert message
    return None, message


CONFIG = json.loads((CHECKPOINT / "config.json").read_text())
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "U8"]) | JSON,
        "shape": st.lists(st.integers(0, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | JSON,
    }
)
HEADERS = st.dictionaries(TEXTS, ENTRIES | JSON, max_size=3) | JSON


@SOME
@given(HEADERS | st.binary(max_size=40), st.binary(max_size=64), st.integers(-3, 3) | st.integers(0, 2**64 - 1))
def test_any_header_is_read_or_one_error(tmp_path: Path, header: Any, data: bytes, longer: int) -> None:
    text = header if isinstance(header, bytes) else written(header)
    length = (len(text) + longer) % 2**64 if abs(longer) <= 3 else longer
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    file, message = outcome(Fairy2iError, SafetensorsFile, path)
    assert file is not None or str(path) in message
    for name, info in file.tensors.items() if file is not None else ():
        assert info.begin + info.size <= path.stat().st_size
        array, message = outcome(Fairy2iError, file.read, name)
        assert "stored as" in message if array is None else array.shape == info.shape  # no floats


@SOME
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4))
def test_sound_headers_are_read(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    header, at = {}, 0
    for number, (rows, columns) in enumerate(shapes):
        size = 4 * rows * columns
        header[f"t{number}"] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [at, at + size]}
        at += size
    text, path = written(header), tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.arange(at // 4, dtype=np.float32).tobytes())
    file = SafetensorsFile(path)
    found = [file.read(f"t{number}") for number in range(len(shapes))]
    assert [array.shape for array in found] == shapes
    assert [value for array in found for value in array.flat] == list(range(at // 4))


@SOME
@given(changed(CONFIG) | st.dictionaries(st.sampled_from(sorted(CONFIG)), JSON).map(lambda some: {**CONFIG, **some}))
def test_any_json_is_a_configuration_or_one_error(config: dict[str, Any]) -> None:
    decoder, _ = outcome(Fairy2iError, describe, config)
    assert decoder is None or decoder.layers >= 1


@SOME
@given(JSON.map(written) | st.binary(max_size=60))
def test_any_bytes_are_json_or_one_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    value, message = outcome(Fairy2iError, read_source_json, path)
    assert isinstance(value, dict) or str(path) in message


GENAI = json.loads((stories_folder() / "genai_config.json").read_text())
GENERATION = json.loads((stories_folder() / "generation_config.json").read_text())
SAMPLING = {**GENERATION, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}


@SOME
@given(changed(GENAI) | JSON, changed(SAMPLING) | JSON)
def test_any_configuration_of_a_folder_is_read_or_one_error(tmp_path: Path, genai: Any, generation: Any) -> None:
    (tmp_path / "genai_config.json").write_bytes(written(genai))
    (tmp_path / "generation_config.json").write_bytes(written(generation))
    (tmp_path / "model.onnx").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, message = outcome(ModelFolderError, open_folder, tmp_path)
        sampling, said = outcome(ModelFolderError, recommended_sampling, tmp_path)
    if folder is None:
        assert str(tmp_path) in message
    else:
        assert folder.context_length >= 1
        assert all(isinstance(token, int) and token >= 0 for token in folder.eos_ids)
    if sampling is None:
        assert str(tmp_path) in said
    else:
        GenerationOptions.of(**sampling)


TOKENIZER = json.loads((CHECKPOINT / "tokenizer.json").read_text())


@SOME
@given(changed(TOKENIZER).map(written) | JSON.map(written) | st.binary(max_size=60))
def test_any_tokenizer_is_read_or_one_error(data: bytes) -> None:
    tokenizer, _ = outcome(TokenizerFileError, parse_tokenizer, data)
    assert tokenizer is None or tokenizer.get_vocab_size() >= 0


LINES = st.lists(
    st.tuples(st.sampled_from(["0" * 64, "f" * 63, "", "z" * 64]), TEXTS | st.sampled_from(["model.onnx", "config.json"])),
    max_size=4,
).map(lambda lines: "".join(f"{digest}  {name}\n" for digest, name in lines).encode("utf-8", "surrogatepass"))


@SOME
@given(LINES | st.binary(max_size=100))
def test_any_list_of_hashes_is_read_or_one_problem(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(data)
    (tmp_path / "model.onnx").touch()
    found, message = outcome(ModelFolderError, integrity_problems, tmp_path)
    if found is None:
        assert str(tmp_path) in message
    else:
        assert found[0]  # nothing has such a hash


@SOME
@given(st.binary(max_size=300) | st.lists(JSON.map(written), max_size=4).map(b"\n".join))
def test_any_journal_is_continued_or_begun_anew(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal"
    identity = {"tool": "1", "codes": "1", "source": "s", "options": "o"}
    head = json.dumps({"journal": "fairy2i-export journal 1", **identity}).encode() + b"\n"
    for contents, begun in ((data, b""), (head + data, head)):
        path.write_bytes(contents)
        journal = Journal(path)
        reason = journal.resume(identity)
        journal.finished_file("a", "b")
        journal.close()
        assert reason is None or not begun
        again = Journal(path)
        assert again.resume(identity) is None  # what was written is a journal
        assert again.files["a"] == "b"
        again.close()


SIZES = st.integers(-2, 40)


@SOME
@given(SIZES, SIZES, st.integers(-1, 5), st.integers(0, 2), st.integers(0, 1), st.binary(max_size=64), st.integers(-1, 1))
def test_any_packed_bytes_are_codes_or_one_error(
    n: int, m: int, stages: int, version: int, scope: int, pattern: bytes, longer: int
) -> None:
    known = n > 0 and m > 0 and stages in {1: (1, 2, 3, 4), 2: (1,)}.get(version, ())
    size = packed_size(n, m, stages, version) if known else len(pattern)
    data = np.resize(np.frombuffer(pattern or b"\0", np.uint8), max(0, size + longer))
    packed = PackedLinear(data, np.ones((max(stages, 0), 2, 2), np.float32), n, m, stages, None, None, version, scope)
    codes, _ = outcome(FormatError, unpack, packed)
    assert (codes is not None) == (known and scope == 0 and not longer)
    if codes is None:
        return
    assert codes.codes.max() <= 3
    again = pack(codes, version)  # all bits but those of the padding
    assert (unpack(again).codes == codes.codes).all()


@SOME
@given(st.lists(TEXTS | st.tuples(st.sampled_from("ab"), TEXTS | JSON.map(json.dumps)).map("=".join), max_size=3))
def test_any_template_variable_is_taken_or_one_error(given_texts: list[str]) -> None:
    variables, _ = outcome(OptionError, template_variables, given_texts)
    assert variables is None or len(variables) == len(given_texts)


@FEW
@given(
    st.lists(st.dictionaries(st.sampled_from(["role", "content", "x"]), JSON, max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["tools", "documents", "enable_thinking", "messages_", "range"]), JSON, max_size=3),
)
def test_any_messages_and_variables_are_a_text_or_one_error(
    messages: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    template = ChatTemplate(CHAT_TEMPLATE + "{{ enable_thinking }}{{ tools }}", {"bos_token": "<s>"})
    text, _ = outcome((ChatTemplateError, OptionError), lambda: template.render(messages, **variables))
    assert text is None or isinstance(text, str)


PIECES = ["{{", "{%", "}}", "%}", "x", " ", "for", "in", "endfor", "set", "if", "(", "|", "'", "loop"]


@FEW
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_template_is_a_text_or_one_error(source: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    text, _ = outcome(ChatTemplateError, lambda: ChatTemplate(source, {}).render(messages))
    assert text is None or isinstance(text, str)
