"""What `fairy2i serve` answers, by OpenAI's own client and by hand; compared with what the model says without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import fairy2i_runtime
from fairy2i_runtime.model import Model
from runtime_models import chat_folder, stories_folder
from serving import Served, serving

QUESTION = [{"role": "user", "content": "Once upon a time"}]
TURNS = [{"role": "system", "content": "Be brief."}, *QUESTION, {"role": "assistant", "content": "Yes"}, *QUESTION]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = chat_folder(tmp_path_factory.mktemp("served") / "talk")
    template = made / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{% if shout is defined %} {{ shout }}{% endif %}", "utf-8")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """The model as it is without a server."""
    return fairy2i_runtime.load(folder, threads=1)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(fairy2i_runtime.load(folder, threads=1), max_tokens=300, max_body_kb=20) as found:
        yield found


@pytest.mark.parametrize("messages", [QUESTION, TURNS], ids=["one message", "several"])
def test_chat(served: Served, model: Model, messages: Any) -> None:
    expected = model.chat(messages, max_new_tokens=30)
    found = served.client().chat.completions.create(model="talk", messages=messages, max_tokens=30)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == "length"
    assert found.object == "chat.completion"
    prompt = model.tokenizer.encode(model.chat_template.render(messages), add_special_tokens=False)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (
        len(prompt),
        30,
        len(prompt) + 30,
    )


@pytest.mark.parametrize("with_usage", [True, False])
def test_chat_stream(served: Served, model: Model, with_usage: bool) -> None:
    expected = model.chat(QUESTION, max_new_tokens=40)
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(
        served.client().chat.completions.create(
            model="talk", messages=QUESTION, max_completion_tokens=40, stream=True, **options
        )
    )
    usage = chunks.pop() if with_usage else None
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == expected.text
    assert sum(map(bool, pieces)) > 20  # piece by piece
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    if usage is not None:
        assert usage.choices == []
        assert usage.usage.completion_tokens == 40
        assert all(chunk.usage is None for chunk in chunks)


def test_the_bytes_of_a_stream(served: Served) -> None:
    body = {"prompt": "Once", "max_tokens": 3, "stream": True}
    response = httpx.post(f"{served.url}/v1/completions", json=body).raise_for_status()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    objects = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {found["object"] for found in objects} == {"text_completion"}
    assert "usage" not in objects[0]


@pytest.mark.parametrize("stream", [True, False])
def test_completions(served: Served, model: Model, stream: bool) -> None:
    expected = model.generate("Once upon a time", max_new_tokens=200, stop=["the", "big"])
    assert expected.finish_reason == "stop"
    found = served.client().completions.create(
        model="talk", prompt="Once upon a time", max_tokens=200, stop=["the", "big"], stream=stream
    )
    if stream:
        chunks = list(found)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert found.choices[0].text == expected.text
        assert found.choices[0].finish_reason == "stop"
        assert found.usage.completion_tokens == len(expected.token_ids)


@pytest.mark.parametrize("prompt", [[1, 403, 407], [[1, 403, 407]], ["Once upon a time"]], ids=str)
def test_prompts_in_other_forms(served: Served, model: Model, prompt: Any) -> None:
    expected = model.generate("Once upon a time" if isinstance(prompt[0], str) else [1, 403, 407], max_new_tokens=8)
    found = served.client().completions.create(model="talk", prompt=prompt, max_tokens=8)
    assert found.choices[0].text == expected.text


@pytest.mark.parametrize("seed", [7, -7])
def test_sampling_is_that_of_the_request(served: Served, model: Model, seed: int) -> None:
    expected = model.generate("Once", max_new_tokens=30, temperature=1.5, top_p=0.9, top_k=50, seed=seed % 2**64)
    asked: dict[str, Any] = {"prompt": "Once", "max_tokens": 30, "temperature": 1.5, "top_p": 0.9, "seed": seed}
    found = served.client().completions.create(model="talk", **asked, extra_body={"top_k": 50})
    assert found.choices[0].text == expected.text != model.generate("Once", max_new_tokens=30).text


def test_sampling_that_a_request_does_not_name(folder: Path, model: Model) -> None:
    sampling = {"temperature": 0.0, "repetition_penalty": 4.0}
    with serving(fairy2i_runtime.load(folder, threads=1), sampling=sampling) as served:
        client = served.client()
        found = client.completions.create(model="talk", prompt="Once", max_tokens=20).choices[0].text
        assert found == model.generate("Once", max_new_tokens=20, repetition_penalty=4.0).text
        named = client.completions.create(model="talk", prompt="Once", max_tokens=20, extra_body={"repetition_penalty": 1})
        assert named.choices[0].text == model.generate("Once", max_new_tokens=20).text != found


def test_variables_of_the_chat_template(served: Served, model: Model) -> None:
    expected = model.chat(QUESTION, template_variables={"shout": "Hey"}, max_new_tokens=10)
    found = served.client().chat.completions.create(
        model="talk", messages=QUESTION, max_tokens=10, extra_body={"chat_template_kwargs": {"shout": "Hey"}}
    )
    assert found.choices[0].message.content == expected.text != model.chat(QUESTION, max_new_tokens=10).text


def test_other_forms_of_messages(served: Served, model: Model) -> None:
    """Parts, the newer name of the system's role, and a message as the client gives it back."""
    client = served.client()
    answer = client.chat.completions.create(model="talk", messages=QUESTION, max_tokens=5).choices[0].message
    plain = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": answer.content},
        *QUESTION,
    ]
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    other = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, answer, *QUESTION]
    found = client.chat.completions.create(model="talk", messages=other, max_tokens=20)
    assert found.choices[0].message.content == model.chat(plain, max_new_tokens=20).text


def test_a_text_goes_on_until_the_context_is_full(folder: Path) -> None:
    with serving(fairy2i_runtime.load(folder, threads=1, context_length=40)) as served:
        found = served.client().completions.create(model="talk", prompt="Once", extra_body={"ignore_eos": True})
    assert found.choices[0].finish_reason == "length"
    assert found.usage.total_tokens == 41  # the last token is not run


def test_models(served: Served) -> None:
    client = served.client()
    assert [found.id for found in client.models.list()] == ["talk"]
    assert client.models.retrieve("talk").object == "model"
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist, this is 'talk'"):
        client.models.retrieve("gpt")


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"messages": QUESTION}
WRONG: dict[str, tuple[str, Any, int, str | None, str]] = {
    "no JSON": (CHAT, b"{", 400, None, "invalid_json"),
    "too deep": (CHAT, b"[" * 5000, 400, None, "invalid_json"),
    "half a character": (TEXT, b'{"prompt": "\\ud800"}', 400, None, "invalid_json"),
    "not UTF-8": (TEXT, b'{"prompt": "\xff"}', 400, None, "invalid_json"),
    "NaN": (TEXT, b'{"prompt": "x", "temperature": NaN}', 400, "temperature", "invalid_value"),
    "a list": (CHAT, [], 400, None, "invalid_json"),
    "no messages": (CHAT, {}, 400, "messages", "missing_required_parameter"),
    "empty messages": (CHAT, {"messages": []}, 400, "messages", "invalid_value"),
    "unknown role": (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    "a message that is none": (CHAT, {"messages": ["x"]}, 400, "messages[0]", "invalid_value"),
    "an image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content",
        "invalid_value",
    ),
    "a misspelt parameter": (CHAT, {**USER, "temprature": 1}, 400, "temprature", "unknown_parameter"),
    "a number as text": (CHAT, {**USER, "max_tokens": "5"}, 400, "max_tokens", "invalid_value"),
    "no tokens": (CHAT, {**USER, "max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    "more tokens than allowed": (
        CHAT,
        {**USER, "max_completion_tokens": 301},
        400,
        "max_completion_tokens",
        "invalid_value",
    ),
    "cold": (CHAT, {**USER, "temperature": -1}, 400, "temperature", "invalid_value"),
    "top_p": (CHAT, {**USER, "top_p": 2}, 400, "top_p", "invalid_value"),
    "seed": (CHAT, {**USER, "seed": 1 << 70}, 400, "seed", "invalid_value"),
    "an empty stop": (CHAT, {**USER, "stop": ""}, 400, "stop[0]", "invalid_value"),
    "many stops": (CHAT, {**USER, "stop": ["x"] * 17}, 400, "stop", "invalid_value"),
    "answers that are no number": (CHAT, {**USER, "n": True}, 400, "n", "unsupported_parameter"),
    "a penalty that is no number": (
        CHAT,
        {**USER, "presence_penalty": False},
        400,
        "presence_penalty",
        "unsupported_parameter",
    ),
    "calls of tools": (
        CHAT,
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        400,
        "messages[0].tool_calls",
        "unknown_parameter",
    ),
    "several answers": (CHAT, {**USER, "n": 2}, 400, "n", "unsupported_parameter"),
    "probabilities": (CHAT, {**USER, "logprobs": True}, 400, "logprobs", "unsupported_parameter"),
    "tools": (CHAT, {**USER, "tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    "JSON mode": (
        CHAT,
        {**USER, "response_format": {"type": "json_object"}},
        400,
        "response_format",
        "unsupported_parameter",
    ),
    "usage without stream": (
        CHAT,
        {**USER, "stream_options": {"include_usage": True}},
        400,
        "stream_options",
        "invalid_value",
    ),
    "an unknown variable": (
        CHAT,
        {**USER, "chat_template_kwargs": {"sing": 1}},
        400,
        "chat_template_kwargs",
        "invalid_value",
    ),
    "another model": (CHAT, {**USER, "model": "gpt-4"}, 404, "model", "model_not_found"),
    "too long": (
        CHAT,
        {"messages": [{"role": "user", "content": "a b " * 600}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
    "several prompts": (TEXT, {"prompt": ["a", "b"]}, 400, "prompt", "invalid_value"),
    "no prompt": (TEXT, {}, 400, "prompt", "missing_required_parameter"),
    "no token": (TEXT, {"prompt": []}, 400, "prompt", "invalid_value"),
    "an unknown token": (TEXT, {"prompt": [99999]}, 400, None, "invalid_value"),
    "messages for a text": (TEXT, {**USER, "prompt": "x"}, 400, "messages", "unknown_parameter"),
    "more than the server reads": (TEXT, {"prompt": "a" * 30_000}, 413, None, "request_too_large"),
    "no such address": ("/v1/embeddings", {"input": "x"}, 404, None, "unknown_url"),
    "another method": ("/v1/models", {}, 405, None, "unknown_url"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests(served: Served, case: str) -> None:
    path, body, status, param, code = WRONG[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(f"{served.url}{path}", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]


def test_harmless_parameters_are_accepted(served: Served) -> None:
    body = {**USER, "max_tokens": 1, "user": "me", "store": False, "n": 1, "logprobs": False, "tools": None}
    body |= {"presence_penalty": 0.0, "response_format": {"type": "text"}, "tool_choice": "none", "metadata": {"a": "b"}}
    assert httpx.post(f"{served.url}{CHAT}", json=body).status_code == 200


def test_a_body_of_unknown_length_is_limited(served: Served) -> None:
    parts = iter([b'{"prompt": "', *[b"a" * 1000] * 30, b'"}'])
    response = httpx.post(f"{served.url}{TEXT}", content=parts, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


def test_an_answer_can_come_back_as_it_was(served: Served) -> None:
    """Clients append the message of an answer to the next request, with all its fields."""
    client = served.client()
    answer = client.chat.completions.create(model="talk", messages=QUESTION, max_tokens=3).choices[0].message
    of_a_service = {"annotations": [], "refusal": "", "tool_calls": [], "audio": None, "function_call": None}
    for message in (answer, answer.model_dump(), {**answer.model_dump(), **of_a_service}):
        again = client.chat.completions.create(model="talk", messages=[*QUESTION, message, *QUESTION], max_tokens=1)
        assert again.usage.completion_tokens == 1


def test_pages_of_the_web_cannot_ask(served: Served) -> None:
    """A browser sends other types than JSON to any server, and may be told that a name of the web means this machine."""
    content = json.dumps(USER).encode()
    response = httpx.post(f"{served.url}{CHAT}", content=content, headers={"Content-Type": "text/plain"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_content_type")
    for host, status in (("evil.example", 400), ("evil.example:80", 400), ("", 400), ("localhost:1", 200), ("[::1]:1", 200)):
        assert httpx.get(f"{served.url}/v1/models", headers={"Host": host}).status_code == status
    for host in (
        "[::1].evil.example",
        "[::1",
        "::1",
        "[localhost]",
        "[evil.example]",
        "127.0.0.1.evil.example",
        "localhost:x",
    ):
        assert httpx.get(f"{served.url}/v1/models", headers={"Host": host}).status_code == 400, host
    preflight = httpx.options(f"{served.url}{CHAT}", headers={"Origin": "https://evil.example"})
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_the_key(folder: Path) -> None:
    with serving(fairy2i_runtime.load(folder, threads=1), key="secret-1") as served:
        assert [found.id for found in served.client().models.list()] == ["talk"]
        for key in ("secret-2", "secret", "none"):
            with pytest.raises(openai.AuthenticationError, match="expected the server's key"):
                served.client(api_key=key).chat.completions.create(model="talk", messages=QUESTION)  # type: ignore[arg-type]
        for given, status in (
            ("bearer secret-1", 200),
            ("Bearer  secret-1", 200),
            ("Basic secret-1", 401),
            ("secret-1", 401),
        ):
            assert httpx.get(f"{served.url}/v1/models", headers={"Authorization": given}).status_code == status, given
        response = httpx.get(f"{served.url}/v1/models", headers={"Authorization": "Bearer séc".encode()})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
        assert httpx.get(f"{served.url}/metrics").status_code == 401
        for path in ("/", "/static/chat.js", "/health", "/health/live", "/health/ready"):
            assert httpx.get(f"{served.url}{path}", headers={"Host": "any.example"}).status_code == 200
        assert served.metric('fairy2i_requests_total{path="/v1/chat/completions",status="401"}') == 3


def test_a_model_that_cannot_chat() -> None:
    with serving(fairy2i_runtime.load(stories_folder(), threads=1)) as served:
        with pytest.raises(
            openai.UnprocessableEntityError, match="has no chat template: it continues texts, ask at /v1/compl"
        ):
            served.client().chat.completions.create(model="stories", messages=QUESTION)  # type: ignore[arg-type]
        assert served.client().completions.create(model="stories", prompt="Once", max_tokens=2).usage.completion_tokens == 2


def test_a_template_that_refuses(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}", encoding="utf-8")
    with (
        serving(fairy2i_runtime.load(folder, threads=1)) as served,
        pytest.raises(openai.UnprocessableEntityError, match="roles must alternate"),
    ):
        served.client().chat.completions.create(model="strict", messages=QUESTION)  # type: ignore[arg-type]


def test_metrics_count_what_answers_say(folder: Path) -> None:
    with serving(fairy2i_runtime.load(folder, threads=1)) as served:
        client = served.client()
        usages = [client.chat.completions.create(model="talk", messages=QUESTION, max_tokens=6).usage for _ in range(2)]
        read = sum(usage.prompt_tokens for usage in usages)
        cached = usages[1].prompt_tokens_details.cached_tokens
        assert usages[0].prompt_tokens_details.cached_tokens == 0
        assert cached == usages[1].prompt_tokens - 1
        expected = {
            'fairy2i_prompt_tokens_total{source="cache"}': cached,
            'fairy2i_prompt_tokens_total{source="run"}': read - cached,
            "fairy2i_answer_tokens_total": 12,
            'fairy2i_cache_lookups_total{result="hit"}': 1,
            'fairy2i_cache_lookups_total{result="miss"}': 1,
            'fairy2i_answers_total{end="length"}': 2,
            'fairy2i_requests_total{path="/v1/chat/completions",status="200"}': 2,
            "fairy2i_caches_kept": 1,
            "fairy2i_answers_running": 0,
            "fairy2i_requests_waiting": 0,
            "fairy2i_first_text_seconds_count": 2,
            "fairy2i_answer_seconds_count": 2,
            "fairy2i_wait_seconds_count": 2,
        }
        assert {name: served.metric(name) for name in expected} == expected
        assert served.metric("fairy2i_caches_kept_bytes") > 0
