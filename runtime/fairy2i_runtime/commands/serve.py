"""The command ``fairy2i serve``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fairy2i_runtime.commands.chat import CHAT_DEFAULTS
from fairy2i_runtime.commands.options import Context, Folder, Isa, Kernel, Lookup, Threads, TrustGraph

if TYPE_CHECKING:
    import socket

    from fairy2i_runtime.model import Model
    from fairy2i_runtime.serve.settings import Settings


def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 = any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What requests call the model.", show_default="the folder's name")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Answers that are written at the same time.")] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait for one of them to end; more are refused.")] = 16,
    kept_caches: Annotated[
        int, typer.Option(help="Most ended conversations whose key-value caches are kept for a follow-up.")
    ] = 8,
    cache_mb: Annotated[int, typer.Option("--cache-mb", help="Most megabytes of the kept caches.")] = 1024,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer.", show_default="what the context has room for")
    ] = None,
    max_body_kb: Annotated[int, typer.Option("--max-body-kb", help="Most kilobytes of a request.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds for a request, its wait included.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds that answers have to end after SIGTERM or Ctrl-C.")] = 10.0,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Print a line for every request, without texts.")
    ] = False,
    lookup: Lookup = 0,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    context_length: Context = None,
    trust_graph: TrustGraph = False,
) -> None:
    """Serve a model with the HTTP interface of OpenAI, and a page to chat with it.

    The environment variable FAIRY2I_API_KEY holds the key that clients have to present (Authorization: Bearer KEY); without it
    the server is for this machine alone. Ctrl-C and SIGTERM end it when the answers that are being written have ended, a second
    time at once.
    """
    from fairy2i_runtime.serve.settings import Settings, check_packages, key_of_environment

    check_packages()
    from fairy2i_runtime.commands.process.startup import Terminated, first_of
    from fairy2i_runtime.model import load
    from fairy2i_runtime.serve.app import make_app
    from fairy2i_runtime.serve.server import Server, listen
    from fairy2i_runtime.text.options import GenerationOptions
    from fairy2i_runtime.text.recommended import recommended_sampling

    settings = Settings(
        host, port, key_of_environment(), name, parallel, queue, kept_caches, cache_mb, max_tokens,
        max_body_kb, timeout, grace,
    )  # fmt: skip
    GenerationOptions.of(lookup=lookup)  # a mistake is told before the model is loaded
    with listen(settings) as listening:  # what is wrong with the address is told before the model is loaded
        model = load(folder, threads=threads, kernel=kernel, isa=isa, context_length=context_length, trust_graph=trust_graph)
        if model.chat_template is not None:
            model.chat_template.check()
        recommended = recommended_sampling(folder)
        defaults = {} if recommended.get("temperature") else CHAT_DEFAULTS
        app = make_app(model, settings, {**defaults, **recommended, "lookup": lookup})
        ready = lambda: _say_ready(model, settings, listening)  # noqa: E731
        server = Server(app, settings, ready, log_requests=log_requests, first_of=first_of)
        try:
            server.run(sockets=[listening])
        except (KeyboardInterrupt, Terminated) as stop:
            stop.add_note("stopped serving")
            raise


def _say_ready(model: Model, settings: Settings, listening: socket.socket) -> None:
    from fairy2i_runtime.measure.memory import human_bytes
    from fairy2i_runtime.serve.server import url

    one = model.decoder.cache_shape.size_bytes(model.context_length)
    key = "clients need the key" if settings.key else "no key: for this machine alone"
    chat = "" if model.chat_template else "; no chat template: only /v1/completions"
    for line in (
        f"serving {settings.name or model.folder.path.resolve().name} at {url(listening)} ({key}{chat})",
        f"{settings.parallel} answers at a time with up to {human_bytes(one)} of key-value cache each, {settings.queue} requests "
        f"wait; up to {settings.kept_caches} ended conversations are kept, in {human_bytes(settings.cache_mb * 1_000_000)} at most",
    ):
        print(line, file=sys.stderr, flush=True)
