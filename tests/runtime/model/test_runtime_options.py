"""What callers give the Python interface: its keywords, their types, texts that are none, and what a model recommends."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairy2i_runtime
from fairy2i_runtime import Conversation, GenerationOptions, Model, load
from fairy2i_runtime.commands.chat import chat as chat_command
from fairy2i_runtime.commands.generate import generate as generate_command
from fairy2i_runtime.engine.threads import processors, warn_of_too_many
from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, OptionError
from fairy2i_runtime.text.options import GenerationChoices
from fairy2i_runtime.text.recommended import recommended_sampling
from runtime_models import chat_folder, stories_folder

PROMPT = "Once upon a time"
TALKERS = (Model.generate, Model.stream, Model.chat, Model.generate_batch, Conversation.ask, Conversation.stream)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(chat_folder(tmp_path_factory.mktemp("chat") / "model"), kernel="exact", threads=1)


def test_the_keywords_are_the_fields_of_the_options() -> None:
    of_fields, of_keywords = typing.get_type_hints(GenerationOptions), typing.get_type_hints(GenerationChoices)
    assert {name: of_fields[name] for name in (field.name for field in fields(GenerationOptions))} == of_keywords
    for method in (*TALKERS, Conversation.stream_message, GenerationOptions.of, GenerationOptions.from_folder):
        keywords = typing.get_type_hints(method)["options"]
        assert keywords == typing.Unpack[GenerationChoices], method


def test_options_have_one_name_in_python_and_on_the_command_line() -> None:
    options = {field.name for field in fields(GenerationOptions)}
    of_python = {"folder", "use_library", "copy", "check"}  # for check there is fairy2i verify --integrity
    of_load = set(inspect.signature(load).parameters) - of_python
    generate, chat = (set(inspect.signature(command).parameters) for command in (generate_command, chat_command))
    assert generate == options | of_load | {"folder", "prompt", "stream", "stats", "recommended"}
    assert chat == options - {"ignore_eos"} | of_load | {"folder", "system", "template_variable"}
    assert {"system", "template_variables"} <= set(inspect.signature(Model.conversation).parameters)


def test_mypy_sees_wrong_keywords(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        textwrap.dedent("""
            import fairy2i_runtime
            model = fairy2i_runtime.load("folder", threads=2)
            model.generate("a", max_new_tokens=None, stop=["b"], temperature=0.5)
            model.generate("a", max_tokens=5)
            model.conversation().ask("a", top_k="5")
            model.chat([{"role": "user", "content": "a"}], template_variables={"tools": []}, ignore_eos=1)
        """)
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        f"--cache-dir={tmp_path / 'cache'}",
        "use.py",
    ]
    root = Path(fairy2i_runtime.__file__).parent.parent  # mypy finds what is installed by itself
    environment = {**os.environ, "MYPYPATH": "" if root.name == "site-packages" else str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False)
    found = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert found == ["5", "6", "7"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": 3}, "^stop: expected a text or several, got 3"),
        ({"stop": None}, "^stop: expected a text or several, got None"),
        ({"stop": b"end"}, "^stop: expected a text or several, got b'end'"),
        ({"stop": {"a": 1}}, "^stop: expected a text or several"),
        ({"stop": [b"end"]}, "^stop: expected texts .* got b'end'"),
        ({"stop": ["fine", "caf\udce9"]}, "^stop: expected text in UTF-8, found the byte 0xe9 at position 3"),
        ({"max_new_tokens": "5"}, "^max_new_tokens: expected an integer of at least 1, or None, got '5'"),
        ({"max_new_tokens": True}, "^max_new_tokens: expected"),
        ({"temperature": "0.7"}, "^temperature: expected a finite number of at least 0 .* got '0.7'"),
        ({"top_k": 2.0}, "^top_k: expected an integer"),
        ({"seed": "1"}, "^seed: expected"),
        ({"ignore_eos": 1}, "^ignore_eos: expected True or False, got 1"),
        ({"max_tokens": 5}, "^unknown option 'max_tokens': expected temperature"),
    ],
)
def test_every_way_to_generate_names_the_option(model: Model, options: dict[str, Any], words: str) -> None:
    calls: Iterable[Callable[..., object]] = (
        lambda **o: model.generate(PROMPT, **o),
        lambda **o: model.stream(PROMPT, **o),
        lambda **o: model.chat([{"role": "user", "content": "x"}], **o),
        lambda **o: model.generate_batch([PROMPT], **o),
        lambda **o: model.conversation().ask("x", **o),
        lambda **o: GenerationOptions.of(**o),
    )
    for call in calls:
        with pytest.raises(OptionError, match=words):
            call(**options)


def test_stops_may_come_from_any_collection(model: Model) -> None:
    text = model.generate(PROMPT, max_new_tokens=40).text
    for stop in (text[9:14], [text[9:14]], (text[9:14],), {text[9:14]}, iter([text[9:14]]), np.array([text[9:14]])):
        assert model.generate(PROMPT, max_new_tokens=40, stop=stop).text == text[: text.index(text[9:14])]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_length": "5"}, r"^context_length: expected 1 to 512 .* got '5'"),
        ({"context_length": 5.0}, r"^context_length: expected 1 to 512 .* got 5.0"),
        ({"context_length": True}, r"^context_length: expected 1 to 512 .* got True"),
        ({"kernel": 3}, r"^kernel: expected a name \(str\), got 3"),
        ({"isa": b"avx2"}, r"^isa: expected a name \(str\), got b'avx2'"),
        ({"threads": True}, "^threads: expected an integer from 1 to 1024, got True"),
        ({"threads": "2"}, "^threads: expected an integer from 1 to 1024, got '2'"),
        ({"use_library": "no"}, "^use_library: expected True or False, got 'no'"),
    ],
)
def test_load_names_the_option(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load(stories_folder(), **options)


@pytest.mark.parametrize("folder", [3, None, b"folder", ["folder"]])
def test_load_wants_a_path(folder: Any) -> None:
    with pytest.raises(OptionError, match=r"^folder: expected the path of a folder"):
        load(folder)


def test_load_takes_integers_of_numpy() -> None:
    assert load(stories_folder(), threads=np.int64(1), context_length=np.int32(40)).context_length == 40


@pytest.mark.parametrize("prompts", ["abc", b"abc", {"a": 1}, None, 5])
def test_a_batch_is_a_list(model: Model, prompts: Any) -> None:
    with pytest.raises(OptionError, match=r"^prompts: expected a list of texts or lists of token ids"):
        model.generate_batch(prompts)
    with pytest.raises(OptionError, match=r"^texts: expected a list of lists of token ids"):
        model.logits_batch(prompts)
    with pytest.raises(OptionError, match=r"^messages: expected a list of messages"):
        model.chat(prompts)


@pytest.mark.parametrize("prompts", [[1, 2, 3], [PROMPT, None], [PROMPT, b"x"], [PROMPT, [1.5]], [PROMPT, ["a"]]])
def test_the_member_that_is_wrong_is_named(model: Model, prompts: list[Any]) -> None:
    with pytest.raises(OptionError, match=rf"^prompts\[{len(prompts) - 1 if PROMPT in prompts else 0}\]: expected"):
        model.generate_batch(prompts)


def test_batches_come_from_anything_that_can_be_iterated_over(model: Model) -> None:
    expected = [result.text for result in model.generate_batch([PROMPT, "Tom"], max_new_tokens=5)]
    for prompts in ((PROMPT, "Tom"), iter([PROMPT, "Tom"]), np.array([PROMPT, "Tom"])):
        assert [result.text for result in model.generate_batch(prompts, max_new_tokens=5)] == expected
    with pytest.raises(OptionError, match="at least one text"):
        model.generate_batch([])


@pytest.mark.parametrize(
    "prompt", [b"bytes", bytearray(b"x"), None, 3, 2.5, {"a": 1}, object(), [[1], [2, 3]], [10**30], [None]]
)
def test_prompts_that_are_none(model: Model, prompt: Any) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(OptionError, match=r"^prompt: expected"):
            call(prompt)


NO_TEXTS = [("\udcff", "the byte 0xff"), ("caf\udce9", "the byte 0xe9 at position 3"), ("a\ud83d", r"surrogate U\+D83D"),
            ("\ud83d\ude00", r"surrogate U\+D83D"), ("x" * 5000 + "\udfff", r"surrogate U\+DFFF\) at position 5000")]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), NO_TEXTS)
def test_texts_that_utf8_cannot_express(model: Model, text: str, words: str) -> None:
    talk = model.conversation()
    talk.ask("Hello cat.", max_new_tokens=3)
    messages = list(talk.messages)
    calls: dict[str, Callable[[], object]] = {
        "prompt": lambda: model.generate(text),
        "prompts[1]": lambda: model.generate_batch([PROMPT, text]),
        "messages[0]: content": lambda: model.chat([{"role": "user", "content": text}]),
        "messages[1]: role": lambda: model.chat([{"role": "user", "content": "x"}, {"role": text, "content": "x"}]),
        "system": lambda: model.conversation(text),
        "stop": lambda: model.generate(PROMPT, stop=[text]),
        "text": lambda: talk.ask(text),
    }
    for name, call in calls.items():
        with pytest.raises(
            OptionError, match=f"^{name.replace('[', chr(92) + '[')}: expected text in UTF-8, found .*{words}"
        ):
            call()
    with pytest.raises(OptionError, match=words):
        model.tokenizer.encode(text)
    assert talk.messages == messages  # and the conversation goes on
    assert talk.ask("And dog?", max_new_tokens=5).text == model.chat(talk.messages[:-1], max_new_tokens=5).text


@pytest.mark.parametrize(
    "message",
    ["hello", 3, None, {}, {"content": "x"}, {"role": 3, "content": "x"}, {"role": "user", "content": b"x"},
     {"role": "user", "content": 3}],
)  # fmt: skip
def test_messages_that_are_none(model: Model, message: Any) -> None:
    with pytest.raises(OptionError, match=r"^messages\[1\](: role|: content)?: expected"):
        model.chat([{"role": "user", "content": "x"}, message])
    talk = model.conversation()
    with pytest.raises(OptionError, match=r"^message(: role|: content)?: expected"):
        talk.stream_message(message)


def test_things_that_are_no_functions_are_no_callbacks(model: Model) -> None:
    with pytest.raises(OptionError, match=r"^on_text: expected a function"):
        model.generate(PROMPT, on_text="print")
    with pytest.raises(OptionError, match=r"^system: expected a text"):
        model.conversation(b"Be kind.")


def test_more_threads_than_processors_are_warned_of_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            load(stories_folder(), threads=processors() + 1)
            warn_of_too_many(processors() + 1)  # what onnxruntime-genai's configuration asks
        load(stories_folder(), threads=processors())
        load(stories_folder())
    assert [warning.category for warning in caught] == [Fairy2iWarning]
    assert f"{processors() + 1} threads on {processors()} processor" in str(caught[0].message)


# --- what a model recommends ---


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "max_length": 20}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_k": 50, "top_p": 0.9}),
        ({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
         {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"do_sample": True, "temperature": None, "top_k": 0}, {"temperature": 1.0, "top_k": 0}),
    ],
)  # fmt: skip
def test_recommended_sampling(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recommended_sampling(tmp_path) == expected
        options = GenerationOptions.from_folder(tmp_path, seed=1)
    assert options == GenerationOptions(**expected, seed=1)


@pytest.mark.parametrize(
    "config",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1},
        {"do_sample": True, "top_k": 7},
        {"do_sample": False, "repetition_penalty": 1.2},
        {},
    ],
    ids=str,
)
def test_recommended_values_mean_what_they_mean_in_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(**config)
    theirs.save_pretrained(tmp_path)
    defaults = theirs._get_default_generation_params()
    wanted = {
        name: defaults[name] if getattr(theirs, name) is None else getattr(theirs, name)
        for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    }
    ours = GenerationOptions.from_folder(tmp_path)
    assert ours.repetition_penalty == wanted["repetition_penalty"]
    if wanted["do_sample"]:
        assert (ours.temperature, ours.top_k, ours.top_p) == (wanted["temperature"], wanted["top_k"], wanted["top_p"])
    else:
        assert ours.temperature == 0


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ('{"do_sample": true, "temperature": -1}', "temperature", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": true, "temperature": 1e9}', "temperature", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": true, "temperature": NaN}', "temperature", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": true, "temperature": "0.7"}', "temperature", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": true, "top_k": -1}', "top_k", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": true, "top_p": 1.5}', "top_p", {"temperature": 1.0, "top_k": 50}),
        ('{"do_sample": "yes", "temperature": 0.5}', "do_sample", {"temperature": 0.5, "top_k": 50}),
        ('{"repetition_penalty": 0}', "repetition_penalty", {}),
        ('{"repetition_penalty": 100}', "repetition_penalty", {}),
        ('{"repetition_penalty": [1.1]}', "repetition_penalty", {}),
    ],
)
def test_nonsense_in_the_file_is_left_out_with_a_warning(tmp_path: Path, config: str, name: str, expected: dict) -> None:
    (tmp_path / "generation_config.json").write_text(config)
    with pytest.warns(
        Fairy2iWarning, match=rf"generation_config.json: {name}: expected .*, found .*: it is ignored"
    ) as caught:
        assert recommended_sampling(tmp_path) == expected
    assert len(caught) == 1


def test_a_damaged_file_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert GenerationOptions.from_folder(tmp_path) == GenerationOptions()
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not valid JSON"):
        GenerationOptions.from_folder(tmp_path)


def test_python_generates_greedily_unless_told_otherwise(model: Model) -> None:
    file = model.folder.path / "generation_config.json"
    before = file.read_text()
    try:
        file.write_text('{"do_sample": true, "temperature": 0.8, "top_k": 20}')
        recommended = GenerationOptions.from_folder(model.folder.path, seed=3, max_new_tokens=30)
        expected = model.generate(PROMPT, temperature=0.8, top_k=20, seed=3, max_new_tokens=30)
        assert model.generate(PROMPT, **vars(recommended)).token_ids == expected.token_ids
        greedy = model.generate(PROMPT, max_new_tokens=30)
        assert greedy.token_ids == model.generate(PROMPT, temperature=0, max_new_tokens=30).token_ids != expected.token_ids
    finally:
        file.write_text(before)
