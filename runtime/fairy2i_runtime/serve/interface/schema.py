"""What requests may say: the fields of OpenAI's interface that mean something here, and a word on those that do not."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from fairy2i_runtime.serve.interface.errors import ApiError, of_validation

MOST_STOPS = 16
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
# parameter -> values that ask for nothing, and why others are refused
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer is written for each request"),
    "logprobs": ((False,), "probabilities are not given out"),
    "top_logprobs": ((0,), "probabilities are not given out"),
    "logit_bias": (({},), "tokens cannot be weighted"),
    "presence_penalty": ((0,), "give repetition_penalty instead"),
    "frequency_penalty": ((0,), "give repetition_penalty instead"),
    "tools": (([],), "calls of tools are not recognised in answers"),
    "tool_choice": (("none", "auto"), "calls of tools are not recognised in answers"),
    "functions": (([],), "calls of functions are not recognised in answers"),
    "function_call": (("none", "auto"), "calls of functions are not recognised in answers"),
    "response_format": (({"type": "text"},), "answers are free text"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "prediction": ((), "answers cannot be given in advance"),
    "reasoning_effort": ((), "set what the model's chat template knows with chat_template_kwargs"),
    "web_search_options": ((), "nothing is searched for"),
    "best_of": ((1,), "one answer is written for each request"),
    "echo": ((False,), "the prompt is not repeated"),
    "suffix": (("",), "texts are continued, not filled in"),
}
# about accounts, storage and routing of a service; nothing here depends on them
_IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "verbosity",
)  # fmt: skip


# what an answer of a service holds beside its text, and comes back with it as a message; empty, or about the text
_NOTES: dict[str, tuple[Any, ...] | None] = {"annotations": None, "refusal": ("",), "tool_calls": ([],)}


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


def _without_notes(message: Any) -> Any:
    """A message without what is null or says nothing."""
    if not isinstance(message, dict):
        return message
    nothing = [name for name, empty in _NOTES.items() if name in message and (empty is None or message[name] in empty)]
    return {name: value for name, value in message.items() if value is not None and name not in nothing}


def _text_of_parts(value: Any) -> Any:
    """A content that is given in parts, as one text."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('expected a text, or parts {"type": "text", "text": ...}: images, sound and files are not read')
    return "".join(part["text"] for part in value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_prompt(value: Any) -> Any:
    """One text or one list of token ids; also as the only one of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        raise ValueError("expected one text or one list of token ids (a request for each prompt)")
    return value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Message(_Part):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of_parts)]
    name: str | None = None
    reasoning_content: str | None = None


class StreamOptions(_Part):
    """What a stream says beside the text; ``include_obfuscation`` is ignored."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Request(_Part):
    """What both kinds of requests have. ``top_k``, ``repetition_penalty`` and ``ignore_eos`` are additions of this server."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=MOST_STOPS)
    ] = []  # pydantic copies it
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    ignore_eos: bool = False


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] = {}


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]


R = TypeVar("R", bound=Request)


def parse(kind: type[R], body: bytes) -> R:
    """A request of a kind, from the bytes that came. Values that are null count as not given.

    Raises:
        ApiError: 400 if it is no such request, or asks for something that is not done here.
    """
    try:
        given = _ANY.validate_json(body)
    except ValidationError as error:
        what = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Invalid JSON: ")
        raise ApiError(400, f"expected JSON: {what}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, f"expected a JSON object, got {type(given).__name__}", code="invalid_json")
    given = {name: value for name, value in given.items() if value is not None and name not in _IGNORED}
    for name, (neutral, why) in _REFUSED.items():
        if name in given and not _asks_for_nothing(value := given.pop(name), neutral):
            raise ApiError(400, f"{name}: {value!r:.60} is not supported: {why}", param=name, code="unsupported_parameter")
    if isinstance(given.get("messages"), list):
        given["messages"] = [_without_notes(message) for message in given["messages"]]
    try:
        request = kind.model_validate(given)
    except ValidationError as error:
        raise of_validation(error) from None
    if given.get("stream_options") is not None and not request.stream:
        raise ApiError(
            400, "stream_options: only for streams, with stream: true", param="stream_options", code="invalid_value"
        )
    return request
