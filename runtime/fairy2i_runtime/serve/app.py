"""The application: which path is answered by what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fairy2i_runtime.model import Model
from fairy2i_runtime.serve.access import Guard
from fairy2i_runtime.serve.answering import Answering
from fairy2i_runtime.serve.engine import Engine
from fairy2i_runtime.serve.interface import wire
from fairy2i_runtime.serve.interface.errors import ApiError
from fairy2i_runtime.serve.interface.schema import ChatRequest, CompletionRequest
from fairy2i_runtime.serve.metrics import CONTENT_TYPE, Metrics
from fairy2i_runtime.serve.settings import Settings

_STATIC = Path(__file__).with_name("static")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def make_app(model: Model, settings: Settings, sampling: Mapping[str, Any]) -> Starlette:
    """The ASGI application of a model; its ``state.engine`` is the engine.

    Args:
        model: the model; it is the server's from now on.
        settings: limits, name and key.
        sampling: fields of :class:`~fairy2i_runtime.text.options.GenerationOptions` for requests that do not name them.
    """
    name = settings.name or model.folder.path.resolve().name
    metrics = Metrics(name)
    engine = Engine(model, settings, metrics, sampling)
    entry = wire.model_entry(name, int(model.folder.model_file.stat().st_mtime))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["name"]
        if asked != name:
            raise ApiError(
                404, f"the model {asked!r} does not exist, this is {name!r}", param="model", code="model_not_found"
            )
        return JSONResponse(entry)

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        if engine.draining:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics_text(request: Request) -> Response:
        engine.update_metrics()
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def page(request: Request) -> Response:
        return FileResponse(_STATIC / "index.html", headers=_PAGE_HEADERS)

    routes = [
        Route("/v1/chat/completions", Answering(engine, name, ChatRequest), methods=["POST"]),
        Route("/v1/completions", Answering(engine, name, CompletionRequest), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", ready),
        Route("/health/ready", ready),
        Route("/health/live", live),
        Route("/metrics", metrics_text),
        Route("/", page),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    handlers: dict[Any, Any] = {ApiError: _refused, HTTPException: _no_route, Exception: _bug}
    middleware = [Middleware(Guard, key=settings.key, metrics=metrics)]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.state.engine = engine
    return app


async def _refused(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    """No such path, or not with this method."""
    asked = f"{request.method} {request.url.path}"
    body = ApiError(error.status_code, f"{asked}: {error.detail}", code="unknown_url").body
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    """Our mistake: the client learns that, the log has the traceback."""
    return JSONResponse(ApiError(500, "the server failed; its log says why", code="internal_error").body, 500)
