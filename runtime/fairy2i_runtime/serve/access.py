"""Who may ask: looked at before anything of a request is read. Everything that is asked is counted here, too."""

from __future__ import annotations

import hmac
import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairy2i_runtime.serve.interface.errors import ApiError
from fairy2i_runtime.serve.metrics import Metrics

_OPEN = ("/", "/health", "/health/live", "/health/ready")  # without a key: the page asks for it, and probes have none
_OPEN_FOLDER = "/static/"
_HOST = re.compile(r"(\[(?P<v6>[^][]*)\]|(?P<name>[^][:]*))(:\d*)?")  # RFC 9110, section 7.2
PATHS = (*_OPEN, "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/models")


class Guard:
    """An ASGI application around another one.

    Without a key, whoever can connect is a program of this machine, a browser among them. It must not ask for a page of the
    web whose name was made to mean this machine (DNS rebinding), so the Host header has to be localhost or an address.
    """

    def __init__(self, app: ASGIApp, key: str | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = path if path in PATHS else "other"
                self._metrics.requests.labels(shown, str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        error = self._refusal(path, Headers(scope=scope))
        if error is None:
            await self._app(scope, receive, counting)
        else:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, counting)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is None:
            host = headers.get("host", "")
            if _is_local(host):
                return None
            message = f"expected a request to localhost or an address, got Host: {host[:100]!r}; to serve names, set a key"
            return ApiError(400, message, code="invalid_host")
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return None
        given = headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        if hmac.compare_digest(key.strip(" ").encode(), self._key) and scheme.lower() == "bearer":  # RFC 9110, section 11.1
            return None
        found = "another one" if given else "none"
        return ApiError(
            401,
            f"expected the server's key as Authorization: Bearer KEY, got {found}",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _is_local(host: str) -> bool:
    """Whether a Host header, NAME or NAME:PORT, is localhost or an IP address."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        if found["v6"] is not None:
            ipaddress.IPv6Address(found["v6"])
        elif found["name"].lower() != "localhost":
            ipaddress.IPv4Address(found["name"])
    except ValueError:
        return False
    return True
