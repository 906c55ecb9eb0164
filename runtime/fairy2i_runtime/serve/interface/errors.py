"""Errors as clients of OpenAI's interface know them."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from fairy2i_runtime.errors import ChatTemplateError, ContextError, Fairy2iRuntimeError, OptionError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_OWN_NAMES = {"max_new_tokens": "max_tokens"}  # of the runtime -> of the interface


class ApiError(Exception):
    """A request is refused, or its answer fails.

    Attributes:
        status: of HTTP.
        body: ``{"error": {"message", "type", "param", "code"}}``.
        headers: of HTTP.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        kind = _TYPES.get(status, "invalid_request_error")
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of_runtime(error: Fairy2iRuntimeError) -> ApiError:
    """What a client is told of an error of the runtime: whose mistake it was decides the status."""
    message = str(error)
    if isinstance(error, ChatTemplateError):
        return ApiError(422, message, param="messages", code="chat_template_refused")
    if isinstance(error, OptionError):
        name = re.match(r"([\w\[\].]+)(: | )", message)
        param = name and _OWN_NAMES.get(name[1], name[1])
        return ApiError(400, message, param=param if name and ":" in message else None, code="invalid_value")
    code = "out_of_memory" if isinstance(error, ContextError) else "run_failed"
    return ApiError(503, message, code=code, headers={"Retry-After": "10"})


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f"{'.' if param else ''}{part}"
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: unknown parameter", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{param}: is missing", param=param, code="missing_required_parameter")
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    what = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'request'}: {what}, got {shown}", param=param or None, code="invalid_value")
