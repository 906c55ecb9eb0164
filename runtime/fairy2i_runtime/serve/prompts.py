"""Requests become prompts: token ids and the options of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.model import Model
from fairy2i_runtime.serve.interface.errors import ApiError, of_runtime
from fairy2i_runtime.serve.interface.schema import ChatRequest, CompletionRequest, Request
from fairy2i_runtime.text.conversation import checked_variables
from fairy2i_runtime.text.options import GenerationOptions

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class Prompt:
    """What the model is to go on from.

    Attributes:
        ids: token ids.
        options: how.
        continues: whether the answer continues the prompt's text, or is a text of its own.
    """

    ids: list[int]
    options: GenerationOptions
    continues: bool


def make_prompt(model: Model, sampling: Mapping[str, Any], limit: int | None, request: Request) -> Prompt:
    """The prompt of a request. Takes a while for long texts.

    Args:
        model: the model.
        sampling: options for a request that does not name them.
        limit: most tokens of an answer; None = what the context has room for.
        request: what is asked.

    Raises:
        ApiError: 400 if it is too long or asks for more tokens than an answer may have, 422 if the model cannot chat or its
            template refuses the messages.
    """
    try:
        options = _options(sampling, limit, request)
        if isinstance(request, CompletionRequest):
            ids = model.tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else request.prompt
        else:
            assert isinstance(request, ChatRequest)
            ids = _chat_ids(model, request)
        model.decoder.check_tokens(ids)
    except Fairy2iRuntimeError as error:
        raise of_runtime(error) from error
    name = "messages" if isinstance(request, ChatRequest) else "prompt"
    if not ids:
        raise ApiError(400, f"{name}: expected at least one token, got none", param=name, code="invalid_value")
    if len(ids) >= model.context_length:
        raise ApiError(
            400,
            f"{name}: {len(ids)} tokens do not fit into the context of {model.context_length}, one new token included: "
            "shorten them",
            param=name,
            code="context_length_exceeded",
        )
    return Prompt(ids, options, isinstance(request, CompletionRequest))


def _chat_ids(model: Model, request: ChatRequest) -> list[int]:
    template = model.chat_template
    if template is None:
        raise ApiError(
            422,
            f"the model {model.folder.path.name} has no chat template: it continues texts, ask at /v1/completions",
            code="no_chat_template",
        )
    variables = checked_variables("chat_template_kwargs", request.chat_template_kwargs, template)
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    for message in messages:
        if message["role"] == "developer":  # the newer name; templates know the older one
            message["role"] = "system"
    return model.tokenizer.encode(template.render(messages, **variables), add_special_tokens=False)


def _options(sampling: Mapping[str, Any], limit: int | None, request: Request) -> GenerationOptions:
    asked, name = request.max_tokens, "max_tokens"
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        asked, name = request.max_completion_tokens, "max_completion_tokens"
    if asked is not None and limit is not None and asked > limit:
        raise ApiError(
            400, f"{name}: this server writes at most {limit} tokens, got {asked}", param=name, code="invalid_value"
        )
    chosen: Mapping[str, Any] = {
        **sampling,
        **{field: value for field in _SAMPLING if (value := getattr(request, field)) is not None},
    }
    return GenerationOptions.of(
        **chosen,
        seed=None if request.seed is None else request.seed % (1 << 64),  # negative ones are seeds there
        max_new_tokens=limit if asked is None else asked,
        stop=request.stop,
        ignore_eos=request.ignore_eos,
    )
